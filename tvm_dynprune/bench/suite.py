# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite behind ``scripts/bench_networks``: all networks, engines and MAC cuts."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tvm_dynprune.bench.engines import PEERS
from tvm_dynprune.files import write_atomic
from tvm_dynprune.report.suite_plot import plot_suite
from tvm_dynprune.soc import load_soc
from tvm_dynprune.soc.host import SIMILAR

NETWORKS = (
    "vgg16_bn",
    "resnet56",
    "resnet18",
    "mobilenet_v1",
    "mobilenet_v2",
    "squeezenet1_1",
)
PICTURE = "benchmarks.svg"
CUTS = (0.7, 0.0, 0.25, 0.5, 0.85)  # the first against every engine, the others against the fastest


def main(out: str, logs: str, *networks: str) -> None:
    """Time what has no JSON in `out` yet, then print the page; `logs` has tuning logs by SoC."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    lanes = load_soc("host").lanes
    for network in networks or NETWORKS:
        against, tuned = list(PEERS), _tuned(network, Path(logs))
        for cut in CUTS:
            command = ["bench", network, "--mac-cut", str(cut), "--group-size", str(lanes), *tuned]
            command += ["--against", ",".join(against), "--rounds", "5"]
            result = _measured(folder / f"{network}-{cut:.2f}.json", command)
            if cut == CUTS[0]:
                dense = {name: result["engines"][name]["median_ms"] for name in against}
                against = [min(dense, key=lambda name: dense[name])]
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    plot_suite(results, list(PEERS), folder / PICTURE)
    print("\n".join(page(results)))


def _tuned(network: str, logs: Path) -> list[str]:
    """Options for the log of a network for machines like this one, if there is one."""
    host = load_soc("host")
    soc = SIMILAR[host.target["mtriple"].startswith("x86_64"), host.lanes]
    log = logs / soc / network
    return ["--soc", soc, "--log", str(log)] if log.is_dir() else []


def _measured(path: Path, command: list[str]) -> dict[str, Any]:
    if not path.is_file():
        with write_atomic(path) as temporary:
            command = [sys.executable, "-m", "tvm_dynprune", *command, "--json", str(temporary)]
            subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads(path.read_text())


def page(results: list[dict[str, Any]]) -> Iterable[str]:
    """The page as lines of Markdown."""
    first = results[0]["provenance"]
    yield "# Benchmarks"
    yield ""
    yield f"{first['machine']}, {first['date']}, 1 thread, fp32, batch 1, random weights."
    yield "Latency in ms: median of each input's runs, mean over the inputs (minimum to maximum of"
    yield "all runs); engines in turns, one pinned process each."
    yield "Gates are forced: their thresholds are set for a MAC cut, and say nothing of accuracy."
    socs = sorted({result["soc"] for result in results})
    yield f"* ours: SoC profile {', '.join(socs)}; kernels from `tuning_logs/` where it has them"
    settings: dict[str, str] = {}
    versions: dict[str, str] = {}
    for result in results:
        settings |= result["settings"]
        versions |= result["provenance"]["versions"]
    for name, setting in settings.items():
        yield f"* {name} {versions[name]}: {setting}"
    yield ""
    yield f"![Latency of engines and of gated networks]({PICTURE})"
    for network in dict.fromkeys(result["network"] for result in results):
        yield from _section(network, [one for one in results if one["network"] == network])


def _section(network: str, results: list[dict[str, Any]]) -> Iterable[str]:
    whole = max(results, key=lambda result: len(result["engines"]))
    yield ""
    yield f"## {network}"
    yield ""
    yield "| engine | ms | min to max | peak memory, MiB | largest error |"
    yield "|---|---|---|---|---|"
    for name, one in sorted(whole["engines"].items(), key=lambda item: item[1]["median_ms"]):
        ours = {"dynprune": f"MAC cut {whole['mac_cut']:.0%}", "dynprune_dense": "dense"}
        label = f"**ours, {ours[name]}**" if name in ours else str(name)
        error = one.get("max_abs_error", whole["max_abs_error"])
        yield (
            f"| {label} | {one['median_ms']:.2f} | {one['min_ms']:.2f} to {one['max_ms']:.2f} "
            f"| {one['peak_memory_mib']:.0f} | {error:.0e} |"
        )
    yield ""
    yield "| MAC cut | ours, gated | ours, dense | × dense | realised | × fastest other engine |"
    yield "|---|---|---|---|---|---|"
    for result in sorted(results, key=lambda one: one["mac_cut"]):
        engines, realised = result["engines"], result["realised_fraction"]
        yield (
            f"| {round(result['mac_cut'], 3) + 0.0:.1%} | {engines['dynprune']['median_ms']:.2f} "
            f"| {engines['dynprune_dense']['median_ms']:.2f} | {result['speedup_vs_dense']:.2f} "
            f"| {'–' if realised is None else f'{realised:.2f}'} "
            f"| {result['speedup_vs_best_peer']:.2f} |"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
