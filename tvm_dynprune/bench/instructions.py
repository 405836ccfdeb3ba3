# SPDX-License-Identifier: Apache-2.0
"""Instructions per inference on an emulated Cortex-A76: this package's against MNN's and ncnn's.

scripts/bench_instructions OUT_DIR PRECISION [NETWORK...]

PRECISION is float32 or float16, for all engines. One thread, batch 1, random weights, gates of
a vector's lanes forced to a MAC cut of 70 %, one counter for all. "realised" is the realised
fraction with the algorithms that `auto` chooses; "direct" is that of direct kernels, gated and
dense (``--lowering indexed``).
The peers run in Debian's Python for arm64, fetched into OUT_DIR with their wheels (apt, pip); what
they take to be called from Python, some thousands of instructions, is counted too. Needs Debian,
qemu-user and g++-aarch64-linux-gnu. Prints Markdown.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.bench.device import measure_device_bench
from tvm_dynprune.bench.engines import engine_module
from tvm_dynprune.bench.forced import (
    Forced,
    Gating,
    compile_forced,
    force_gates,
    outputs,
    write_for_peers,
)
from tvm_dynprune.device import EmulatedDevice, build_bundle
from tvm_dynprune.device.emulator import QEMU, build_counter
from tvm_dynprune.runtime.connect import connect
from tvm_dynprune.soc import load_soc

SOC, CPU = "raspberry-pi-5", "cortex-a76"
LANES = {"float32": 4, "float16": 8}
NETWORKS = ("resnet20", "mobilenet_v1_025", "fashion_cnn", "compact_vgg")
PEERS = {"mnn": "MNN", "ncnn": "ncnn"}
DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
TOLERANCE = {"float32": 1e-3, "float16": 3e-2}  # of the outputs' scale


def main() -> None:
    """Count, print Markdown."""
    out, precision = Path(sys.argv[1]), sys.argv[2]
    if precision not in TOLERANCE:
        sys.exit(f"precision {precision}: one of {', '.join(TOLERANCE)}")
    out.mkdir(parents=True, exist_ok=True)
    python = fetch_python(out / "guest")
    build_bundle(load_soc(SOC), out / "bundle", force=True)
    print("| network | " + " | ".join(PEERS.values()), end=" | ")
    print(
        "ours, dense | / better peer | ours, gated | / better peer | MAC cut | realised | direct |"
    )
    print("|---|" + "---|" * (len(PEERS) + 7))
    for network in sys.argv[3:] or NETWORKS:
        gating = Gating(group_size=LANES[precision], mac_cut=0.7)
        forced = force_gates(network, gating, inputs=3)
        peers = [count_peer(kind, forced, precision, python) for kind in PEERS]
        result, direct = (
            count_ours(forced, how, precision, out / "bundle") for how in ("auto", "indexed")
        )
        if not result["max_abs_error"] < TOLERANCE[precision]:
            print(f"{network} is not computed right in {precision}", file=sys.stderr)
            continue
        engines = result["engines"]
        gated, dense = (engines[e]["median_instructions"] for e in ("dynprune", "dynprune_dense"))
        best = np.nanmin(peers)
        cells = ["wrong" if np.isnan(count) else f"{count / 1e6:.2f}" for count in peers]
        cells += [f"{dense / 1e6:.2f}", f"{dense / best:.2f}"]
        cells += [f"{gated / 1e6:.2f}", f"{gated / best:.2f}"]
        cells += [f"{result['mac_cut']:.1%}", f"{result['realised_fraction']:.2f}"]
        cells += [f"{direct['realised_fraction']:.2f}"]
        print(f"| {network} | {' | '.join(cells)} |", flush=True)


def count_ours(forced: Forced, lowering: str, precision: str, bundle: Path) -> dict[str, Any]:
    """Count the gated network and its dense twin; see `measure_device_bench`."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = compile_forced(
            forced, Path(folder) / "a", soc=SOC, lowering=lowering, precision=precision
        )
        with EmulatedDevice(bundle, cpu=CPU, count_instructions=True) as device:
            with connect(device.address) as phone:
                return measure_device_bench(artifact, forced.images, phone, forced=True)


def fetch_python(folder: Path) -> list[str]:
    """Unpack Debian's Python for arm64 with numpy and the peers; returns how to run it."""
    root, debs, site = folder / "root", folder / "debs", folder / "site"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for path in (root, debs / "partial", site, folder / "lists/partial"):
            path.mkdir(parents=True)
        apt = ["apt-get", "-qq", "-oAPT::Architecture=arm64", "-oAPT::Architectures=arm64"]
        apt += [f"-oDir::State::Lists={folder}/lists", "-oDir::State::Status=/dev/null"]
        apt += [f"-oDir::Cache={folder}", f"-oDir::Cache::archives={debs}"]
        run(*apt, "update")
        run(*apt, "install", "--download-only", "--no-install-recommends", "-y", *DEBIAN)
        for deb in debs.glob("*.deb"):
            run("dpkg", "-x", str(deb), str(root))
        version = next((root / "usr/bin").glob("python3.*")).name.removeprefix("python")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
        pip += ["--only-binary=:all:", "--python-version", version]
        pip += [f"--platform={name}_aarch64" for name in PLATFORMS]
        run(*pip, "numpy", *PEERS.values())
        (folder / "complete").touch()
    interpreter = next((root / "usr/bin").glob("python3.*"))
    paths = f"PYTHONPATH={site}:{Path(__file__).parents[1]}"
    return [QEMU, "-cpu", CPU, "-L", str(root), "-E", paths, str(interpreter)]


def run(*command: str) -> None:
    """Run a command; what it says is for stderr."""
    subprocess.run(command, check=True, stdout=sys.stderr)


def count_peer(kind: str, forced: Forced, precision: str, python: list[str]) -> float:
    """Median of the instructions of the dense network's inferences; NaN if they are wrong."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_for_peers(forced.dense, forced.name, work / "dense.onnx")
        model = engine_module(kind).prepare(work / "dense.onnx", work)
        np.save(work / "images.npy", forced.images)
        clock, images = work / "clock", str(work / "images.npy")
        spec = {"kind": kind, "model": str(model), "threads": 1, "batch": 1}
        spec["options"] = {"float16": precision == "float16"}
        requests: list[dict] = []
        for index in range(len(forced.images)):
            requests += [{"index": index, "repeat": 3}, {"output": str(work / f"{index}.npy")}]
        worker = ["-m", "tvm_dynprune.bench.worker", json.dumps(spec | {"clock": str(clock)})]
        plugin = ["-plugin", f"{build_counter()},clock={clock}"]
        done = subprocess.run(
            ["setarch", "-R", python[0], *plugin, *python[1:], *worker, images],
            input="\n".join(map(json.dumps, requests)),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        found = np.concatenate([np.load(work / f"{i}.npy") for i in range(len(forced.images))])
    wanted = outputs(forced.dense, forced.images)
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not error < TOLERANCE[precision]:
        print(f"{kind} computes {forced.name} with an error of {error:.1e}", file=sys.stderr)
        return float("nan")
    return float(np.median([counts[-1] for counts in answers]))


if __name__ == "__main__":
    main()
