"""Where the comparison finds what it runs: the repository, the cache, the binary, the environment."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("ACCORDION_PEERS_CACHE", "~/.cache/accordion/peers")).expanduser()


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, **options):
    """Runs a command to its end; its stdout is returned, and a failure ends this program."""
    command = [str(part) for part in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        sys.exit(f"this command failed with status {done.returncode}: {' '.join(command)}")
    return done.stdout


def digest(*files):
    """A name for the contents of `files`."""
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return total.hexdigest()[:16]


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return "unknown processor"


@dataclass
class Tools:
    """The program that is measured, and Python with the peers."""

    accordion: Path
    python: Path

    @classmethod
    def ready(cls):
        python = run(HERE / "venv.sh").strip()
        if given := os.environ.get("ACCORDION_PEERS_BINARY"):
            return cls(Path(given), Path(python))
        say("building accordion")
        run("cargo", "build", "--release", "--quiet", "--bin", "accordion", cwd=ROOT)
        metadata = run("cargo", "metadata", "--no-deps", "--format-version", "1", cwd=ROOT)
        return cls(Path(json.loads(metadata)["target_directory"]) / "release/accordion", Path(python))
