"""The table of a comparison, and the JSON object under it."""

import json
import statistics

from prepare import BATCHES


def fastest_variants(rounds):
    """Of a list of {variant: ms}, one a round: the median of each variant, and of those the least."""
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    best = min(medians, key=medians.get)
    return best, medians[best]


def summary(cases, measured):
    """`measured` is {engine: {key: [{variant: ms} a round]}}."""
    ms, variants = {}, {}
    for engine, keys in measured.items():
        for key, rounds in keys.items():
            best, value = fastest_variants(rounds)
            ms.setdefault(engine, {})[key] = round(value, 4)
            if engine != "accordion":
                variants.setdefault(engine, {})[key] = best
    peers = [engine for engine in ms if engine != "accordion"]
    ours = ms.get("accordion", {})
    result = {"ratio_vs_fastest_peer": {}, "ms": ms, "fastest_peer": {}, "variants": variants}
    result |= {"share_of_full": {}, "share_of_macs": {}}
    for case in cases:
        for batch in BATCHES:
            key = case.key(batch)
            fastest = min(peers, key=lambda engine: ms[engine][key])
            result["fastest_peer"][key] = fastest
            if ours:
                result["ratio_vs_fastest_peer"][key] = round(ms[fastest][key] / ours[key], 3)
            if case.subnet != "full":
                result["share_of_macs"][key] = round(case.share_of_macs, 4)
                if ours:
                    full = ours[f"{case.model}/full/{batch}"]
                    result["share_of_full"][key] = round(ours[key] / full, 4)
    return result


def table(result):
    engines = list(result["ms"])
    head = [f"{'model/subnet/batch':<26}"] + [f"{engine + ' ms':>16}" for engine in engines]
    yield "".join(head) + f"  {'fastest peer':<34}{'ratio':>7}{'of full':>9}{'of MACs':>9}"
    for key, fastest in result["fastest_peer"].items():
        row = f"{key:<26}" + "".join(f"{result['ms'][engine][key]:>16.3f}" for engine in engines)
        row += f"  {fastest + ' (' + result['variants'][fastest][key] + ')':<34}"
        for column, width in (("ratio_vs_fastest_peer", 7), ("share_of_full", 9), ("share_of_macs", 9)):
            value = result[column].get(key)
            row += f"{'-' if value is None else f'{value:.3f}':>{width}}"
        yield row


def show(cases, measured, machine):
    result = summary(cases, measured)
    print(f"{machine['cpu']}, {machine['threads']} threads, f32; median of {machine['rounds']} rounds")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print("\n".join(table(result)))
    print(json.dumps(result | machine))
