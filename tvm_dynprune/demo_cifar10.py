# SPDX-License-Identifier: Apache-2.0
"""The demo's second part: the shipped CIFAR-10 network on the user's own copy of CIFAR-10."""

from pathlib import Path
from typing import Any

from tvm_dynprune.bench.calibrate import sweep_thresholds
from tvm_dynprune.bench.run import measure_run, write_json
from tvm_dynprune.compiler import compile
from tvm_dynprune.data import LabelledImages, Split, has_split, load_images
from tvm_dynprune.files import shipped
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.progress import working
from tvm_dynprune.runtime.artifact import read_points, store_points
from tvm_dynprune.soc import load_soc

NETWORK, POINTS = "compact_vgg_gumbel.onnx", "points.json"
TIMED = 1000


def run_cifar10(out: Path, data: Path, *, lowering: str = "indexed") -> list[dict[str, Any]]:
    """Compile the shipped network and measure it at each of its operating points.

    Parameters
    ----------
    out
        Existing folder; ``cifar10/`` with an artifact and a measurement per point is made in it.
    data
        Folder with ``cifar-10-batches-bin``. Its test images are used if they are there, otherwise
        the 5,000 training images that the network was not trained on.

    Returns
    -------
    list
        A measurement of kind "run" of the first 1,000 images per point, with ``split``,
        ``accuracy_all`` and ``images_all``: accuracy over all images of the split.

    Raises
    ------
    DataError
        `data` has no CIFAR-10.
    """
    split: Split = "test" if has_split(data, "test") else "validation"
    images = load_images(data, split)
    folder = shipped("demo") / "cifar10"
    with working("compiling the CIFAR-10 network for this machine"):
        model = load_model(folder / NETWORK)
        path = out / "cifar10" / "artifact"
        artifact = compile(model, load_soc("host"), path, lowering=lowering)
    points = read_points(folder / POINTS)
    artifact = store_points(artifact, points)
    shifts = [point.threshold_shift for point in points.values()]
    accuracy = {
        measured.threshold_shift: measured.accuracy
        for measured in sweep_thresholds(artifact, images, shifts=sorted(set(shifts)))
    }
    first = LabelledImages(images.images[:TIMED], images.labels[:TIMED], images.classes)
    results = []
    for name, shift in zip(points, shifts, strict=True):
        result = measure_run(artifact, first, point=name)
        result |= {"split": split, "accuracy_all": accuracy[shift], "images_all": len(images)}
        write_json(result, out / "cifar10" / f"{name}.json")
        results.append(result)
    return results
