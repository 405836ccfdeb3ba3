# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.kernels.util import quick_host
from tvm_dynprune.compiler import compile
from tvm_dynprune.errors import (
    ModelError,
    NotLoweredError,
    OutputExistsError,
    ToolError,
    UnusableGateError,
)
from tvm_dynprune.frontend.model import Model, load_model
from tvm_dynprune.nn.export import write_exported
from tvm_dynprune.passes.instruments import Timer
from tvm_dynprune.runtime import Session

SOC = quick_host()


class SqueezeAndExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.body(x))
        return (y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))).mean((2, 3))


class OwnResultGate(SqueezeAndExcite):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.body(x))
        return (y * (self.gate(y.mean((2, 3), keepdim=True)) > 0).float()).mean((2, 3))


def exported(module: nn.Module, folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "model.onnx"
    write_exported(module, (3, 8, 8), path)
    return path


@pytest.mark.parametrize("lowering", ["auto", "dense", "if", "indexed"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_lowering_equals_masked_pytorch(
    onnx_file: Path, gated_network: nn.Module, tmp_path: Path, lowering: str, batch: int
) -> None:
    model = load_model(onnx_file, batch=batch)
    artifact = compile(model, SOC, tmp_path / "a", lowering=lowering)
    images = np.random.default_rng(2).random((4, 1, 12, 12), "float32")
    with torch.no_grad():
        wanted = gated_network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(Session(artifact).run(images), wanted, rtol=1e-4, atol=1e-5)
    expected = {"auto": {"indexed"}}.get(lowering, {lowering})
    assert {c["lowering"] for c in artifact.manifest.choices if c["gated"]} == expected


def test_calibration_leaves_open_layers_dense(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    for item in model.graph.initializer:
        if "threshold" in item.name:
            values = np.full([int(d) for d in item.dims], -1e6, "float32")
            item.CopyFrom(onnx.numpy_helper.from_array(values, item.name))
    onnx.save(model, tmp_path / "open.onnx")
    images = np.random.default_rng(2).random((8, 1, 12, 12), "float32")
    artifact = compile(load_model(tmp_path / "open.onnx"), SOC, tmp_path / "a", calibration=images)
    assert {c["lowering"] for c in artifact.manifest.choices if c["gated"]} == {"dense"}


def test_a_network_without_gates_compiles_dense_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        artifact = compile(load_model(exported(nn.Conv2d(3, 4, 3), tmp_path)), SOC, tmp_path / "a")
    assert "no gates found: the network is compiled dense" in caplog.text
    assert artifact.manifest.gates == []


def test_an_unusable_gate_is_named_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(exported(OwnResultGate(), tmp_path))
    with caplog.at_level(logging.WARNING):
        artifact = compile(model, SOC, tmp_path / "a")
    assert "gate at body is not used: its multiplier is computed from" in caplog.text
    assert list(artifact.manifest.unused_gates) == ["body"]
    with pytest.raises(UnusableGateError, match="gate at body"):
        compile(model, SOC, tmp_path / "b", strict=True)
    assert not (tmp_path / "b").exists()


def test_an_existing_output_is_kept(onnx_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError, match="--force"):
        compile(load_model(onnx_file), SOC, tmp_path / "a")
    assert (tmp_path / "a" / "mine.txt").read_text() == "keep"


def test_no_compiler_is_a_tool_error(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvm_dynprune.compiler.find_compiler", lambda: None)
    with pytest.raises(ToolError, match="tvm-dynprune doctor"):
        compile(load_model(onnx_file), SOC, tmp_path / "a")


def test_a_wrong_result_is_not_shipped(onnx_file: Path, tmp_path: Path) -> None:
    model = load_model(onnx_file)
    wrong = Model(model.name, model.mod, lambda x: [2 * y for y in model.reference(x)])
    with pytest.raises(NotLoweredError, match="differ from the reference"):
        compile(wrong, SOC, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_dumps_and_times_every_pass(onnx_file: Path, tmp_path: Path) -> None:
    timer = Timer()
    dump = tmp_path / "ir"
    compile(load_model(onnx_file), SOC, tmp_path / "a", dump_ir=dump, timer=timer)
    passes = {name for name, _ in timer.times_ms}
    assert {"FoldBatchNorm", "FuseKernels", "AnnotateOpen", "LowerKernels"} <= passes
    files = [path.name for path in dump.iterdir()]
    assert any("LowerKernels" in name for name in files)


def test_another_batch_than_the_file_has_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(ModelError, match="batch is fixed at 2, 3 was asked for"):
        load_model(tmp_path / "two.onnx", batch=3)


@pytest.mark.parametrize(("name", "message"), [("a.txt", "neither"), ("a.onnx", "no such file")])
def test_a_wrong_file_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    if name == "a.txt":
        (tmp_path / name).write_text("x")
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / name)
