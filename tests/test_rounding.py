# SPDX-License-Identifier: Apache-2.0
"""Rounding errors against PyTorch in fp64, with ONNX Runtime's as the yardstick."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from tvm_dynprune.compiler import compile
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.nn.export import write_exported
from tvm_dynprune.runtime import Session
from tvm_dynprune.soc import load_soc

# Channels in and out, height and width, side of the window, steps.
LAYERS = [(64, 64, 16, 3, 1), (256, 128, 8, 3, 1), (256, 512, 7, 1, 1), (3, 64, 32, 7, 2)]
# Winograd's transforms subtract numbers that are larger than their difference.
WORST = {"dense": 1.0, "auto": 10.0}


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("lowering", WORST)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_errors_are_those_of_onnx_runtime(tmp_path: Path, layer, lowering: str) -> None:
    c_in, c_out, size, kernel, stride = layer
    torch.manual_seed(0)
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2)
    network = nn.Sequential(conv, nn.ReLU(), nn.Flatten()).eval()
    path = tmp_path / "layer.onnx"
    write_exported(network, (c_in, size, size), path)
    artifact = compile(load_model(path), load_soc("host"), tmp_path / "a", lowering=lowering)
    images = np.random.default_rng(0).random((4, c_in, size, size), "float32")
    with torch.no_grad():
        exact = network.double()(torch.from_numpy(images).double()).numpy()
    theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = theirs.get_inputs()[0].name
    yardstick = rms(np.concatenate([theirs.run(None, {name: x[None]})[0] for x in images]) - exact)
    ours = rms(Session(artifact).run(images) - exact)
    assert 0 < ours <= WORST[lowering] * yardstick
    algorithms = {choice["algorithm"] for choice in artifact.manifest.choices}
    assert (algorithms == {"direct"}) == (lowering == "dense" or kernel == 1)
