# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests: a small gated network, its files, and an artifact of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tvm_dynprune.compiler import compile
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.nn import insert_gates
from tvm_dynprune.nn.export import write_exported
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.runtime import Artifact
from tvm_dynprune.soc import load_soc

IMAGE = (1, 12, 12)

# Tests run on all cores at once (scripts/test): threads of trainings would wait for each other.
torch.set_num_threads(1)


class SmallNetwork(nn.Module):
    """Three convolutions, two of which `insert_gates` gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="session")
def gated_network() -> nn.Module:
    """A gated network whose gates differ between inputs."""
    torch.manual_seed(3)
    model = insert_gates(SmallNetwork(), group_size=8).eval()
    for gate in gates_of(model).values():
        nn.init.normal_(gate.conv.weight)
        nn.init.normal_(gate.conv.bias, std=0.3)
    return model


@pytest.fixture(scope="session")
def onnx_file(gated_network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    write_exported(gated_network, IMAGE, path, classes=["ant", "bee", "cat", "dog"])
    return path


@pytest.fixture(scope="session")
def artifact(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("artifact") / "small"
    return compile(load_model(onnx_file), load_soc("host"), out)


@pytest.fixture
def images() -> np.ndarray:
    # Of different brightness, so that the gates' decisions differ.
    brightness = np.linspace(0.05, 1, 5, dtype="float32")[:, None, None, None]
    return brightness * np.random.default_rng(1).random((5, 1, 12, 12), "float32")


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """12x12 grey images in a folder per class."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat", "dog"):
        folder = tmp_path / "data" / "test" / name
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"
