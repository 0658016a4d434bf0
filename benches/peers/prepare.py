"""Makes what is measured: model directories, and for each subnet what the peers run."""

import os
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tools import CACHE, HERE, ROOT, digest, processor, run, say

MODELS = ("fashion-mnist", "ddpmpp-cifar10")
SUBNETS = ("full", "0.500")
BATCHES = (1, 8)


@dataclass
class Case:
    """A subnet of a model; `peers` is the directory of what the peers run."""

    model: str
    model_dir: Path
    subnet: str
    peers: Path
    share_of_macs: float

    def key(self, batch):
        return f"{self.model}/{self.subnet}/{batch}"


def random_ddpmpp(tools, work):
    """The CIFAR-10-sized network, imported, ranked and cut to half of its multiply-accumulates."""
    made_by = [HERE / name for name in ("make_ddpmpp.py", "song_unet.py", "prepare.py", "requirements.txt")]
    directory = CACHE / f"model-ddpmpp-cifar10-{digest(*made_by)}"
    if directory.exists():
        return directory
    say("ddpmpp-cifar10: making the model")
    net, whole, ranked = (work / name for name in ("net", "ddpmpp-cifar10", "ranked"))
    run(tools.python, HERE / "make_ddpmpp.py", "--out", net)
    run(tools.accordion, "import", net, "--out", whole)
    # Random weights have no data to be ranked on.
    how = ["--method", "magnitude", "--order", "within-group"]
    run(tools.accordion, "rank", "--model", whole, *how, "--out", ranked)
    run(tools.accordion, "allocate", "--model", ranked, "--target", "macs", "--ratios", "0.5,1")
    into_cache(ranked, directory, "model-ddpmpp-cifar10-*")
    return directory


def into_cache(made, directory, others):
    """A directory appears in the cache when it is whole, and those of other versions leave."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(others):
        shutil.rmtree(old)
    part = CACHE / f"part-{directory.name}"
    shutil.rmtree(part, ignore_errors=True)
    shutil.move(made, part)
    part.rename(directory)


def case(tools, work, model, model_dir, subnet, threads, compiled):
    """Extracts a subnet, exports it to the peers and asks Accordion for the expected output."""
    name = f"{model}-{subnet}"
    extracted = work / name
    chosen = ["--model", model_dir, "--subnet", subnet]
    run(tools.accordion, "extract", *chosen, "--format", "torch-names", "--out", extracted)
    sources = [extracted / "config.json", extracted / "weights.safetensors"]
    sources += [HERE / script for script in ("export.py", "song_unet.py", "requirements.txt")]
    # Compiled code is this processor's.
    machine = work / "processor"
    machine.write_text(processor())
    peers = CACHE / f"{name}-{digest(*sources, machine)}"
    if not peers.exists():
        into_cache(extracted, peers, f"{name}-*")
    say(f"{model}, {subnet}: exporting what is not there yet")
    batches = ",".join(map(str, BATCHES))
    how = ["--batches", batches, "--threads", threads, *(["--compile"] if compiled else [])]
    # Inductor leaves its sources and objects in the temporary directory.
    run(tools.python, HERE / "export.py", peers, *how, env=os.environ | {"TMPDIR": str(work)})
    # Never from a cache: it is what today's binary computes.
    files = ["--input", peers / "inputs.safetensors", "--output", peers / "expected.safetensors"]
    run(tools.accordion, "forward", *chosen, *files)
    table = tomllib.loads((model_dir / "subnets.toml").read_text())["subnet"]
    macs = {row["name"]: row["macs"] for row in table}
    return Case(model, model_dir, subnet, peers, macs[subnet] / macs["full"])


def cases(tools, work, models, threads, compiled):
    for model in models:
        model_dir = ROOT / "models/fashion-mnist" if model == "fashion-mnist" else random_ddpmpp(tools, work)
        for subnet in SUBNETS:
            yield case(tools, work, model, model_dir, subnet, threads, compiled)
