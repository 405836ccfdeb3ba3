# SPDX-License-Identifier: Apache-2.0
"""The demo: gated networks that ship with the package, compiled and measured on real images."""

from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.bench.run import measure_run, write_json
from tvm_dynprune.compiler import compile
from tvm_dynprune.data import has_split, load_images
from tvm_dynprune.demo_cifar10 import run_cifar10
from tvm_dynprune.files import refuse_existing, remove, shipped
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.progress import working
from tvm_dynprune.report import write_report
from tvm_dynprune.soc import load_soc

NETWORK, REFERENCE = "fashion_cnn_lkam.onnx", "reference.npz"
SHIFTS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


def run_demo(
    out: Path, *, lowering: str = "indexed", cifar10: Path | None = None, force: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compile the shipped network for this machine, run the shipped images, write the report.

    Writes ``artifact/``, ``run.json`` and ``report.html`` into `out`. With `cifar10`, a folder with
    that data set, a second network is measured on it: see `run_cifar10`.

    Returns
    -------
    tuple
        The measurement, and those of the second part.

    Raises
    ------
    OutputExistsError
        `out` exists and `force` is false.
    DataError
        `cifar10` has no CIFAR-10.
    """
    refuse_existing(out, force=force)
    if cifar10 is not None:
        load_images(cifar10, "test" if has_split(cifar10, "test") else "validation")
    remove(out)
    folder = shipped("demo")
    with working("compiling the gated network for this machine"):
        model = load_model(folder / NETWORK)
        artifact = compile(model, load_soc("host"), out / "artifact", lowering=lowering)
    data = load_images(folder / "fashion-mnist-sample", "test", classes=model.classes)
    with np.load(folder / REFERENCE, allow_pickle=False) as arrays:
        reference = arrays["logits"]
    result = measure_run(artifact, data, shifts=SHIFTS, reference=reference)
    write_json(result, out / "run.json")
    second = [] if cifar10 is None else run_cifar10(out, cifar10, lowering=lowering)
    runs = [out / "cifar10" / f"{measured['point']}.json" for measured in second]
    write_report([out / "run.json", *runs], out / "report.html")
    return result, second
