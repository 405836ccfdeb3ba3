# SPDX-License-Identifier: Apache-2.0
"""Export: .pt2 and ONNX files that come back as the network they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tvm_dynprune.errors import ModelError, OutputExistsError
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.nn.export import export, write_exported
from tvm_dynprune.nn.forced import forced_network

CLASSES = ("Ankle boot", "Bag / sac", "café")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return forced_network("fashion_cnn", torch.rand(4, 1, 28, 28), group_size=8, open_fraction=0.5)


@pytest.fixture(scope="module", params=[".pt2", ".onnx"])
def exported(
    model: nn.Module, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    out = tmp_path_factory.mktemp("exported") / f"model{request.param}"
    write_exported(model, (1, 28, 28), out, classes=CLASSES)
    return out


@pytest.mark.parametrize("batch", [1, 3])
def test_round_trip(model: nn.Module, exported: Path, batch: int) -> None:
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    loaded = load_model(exported, batch=batch)
    assert (loaded.name, loaded.classes) == ("model", CLASSES)
    assert [int(n) for n in loaded.mod["main"].params[0].ty.shape] == [batch, 1, 28, 28]
    x = np.random.default_rng(0).random((batch, 1, 28, 28), dtype="float32")
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    (got,) = loaded.reference(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_a_file_holds_no_path_of_this_machine(model: nn.Module, tmp_path: Path) -> None:
    write_exported(model, (1, 28, 28), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b'File "' not in content


def test_existing_output(model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "a.pt2"
    out.write_text("precious")
    with pytest.raises(OutputExistsError, match="--force"):
        write_exported(model, (1, 28, 28), out)
    assert out.read_text() == "precious"
    write_exported(model, (1, 28, 28), out, force=True)
    assert load_model(out).classes == ()


@pytest.mark.parametrize("name", ["model.pth", "model"])
def test_wrong_suffix(model: nn.Module, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=rf"{name}: export writes \.pt2 or \.onnx"):
        write_exported(model, (1, 28, 28), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_export_is_in_evaluation_mode() -> None:
    """Batch norm uses its statistics, whatever mode the network was in."""
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
    program = export(fresh, torch.rand(2, 1, 8, 8))
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), fresh.eval()(x))


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


def test_model_that_cannot_be_traced() -> None:
    with pytest.raises(ModelError, match=r"torch\.export cannot trace Branching: \S") as caught:
        export(Branching(), torch.rand(2, 1, 4, 4))
    assert "\n" not in str(caught.value)
