# SPDX-License-Identifier: Apache-2.0
"""Gates in other people's code are recognised, and the compiled network equals theirs."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm

from tests.frontend.networks import GATED, Assigned, BareSigmoid, Net, SqueezeAndExcitation
from tests.kernels.util import quick_host
from tests.linked import virtual_machine
from tvm_dynprune.errors import ModelError
from tvm_dynprune.frontend import from_onnx
from tvm_dynprune.frontend.exported import from_exported
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.dataflow import Dataflow
from tvm_dynprune.passes.expose_gates import gate_infos
from tvm_dynprune.passes.gates import Gate, find_gates

SIZE = 9
# group size, threshold, binary
RECOGNISED = {
    "HandWrittenLkam": (4, pytest.approx(0.52), True),
    "Dgnet": (1, 0.0, True),
    "TopK": (1, None, False),
    "MaskedFill": (1, pytest.approx(0.1), False),
    "Assigned": (1, pytest.approx(0.1), False),
    "Saliency": (1, None, False),
    "Gumbel": (1, None, True),
}


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, SIZE, SIZE)).astype("float32")


@cache
def exported(net: type[Net], batch: int) -> tvm.IRModule:
    program = torch.export.export(net().eval(), (torch.from_numpy(images(batch)),))
    return from_exported(program)


@cache
def through_onnx(net: type[Net], batch: int, folder: Path) -> tvm.IRModule:
    path = folder / f"{net.__name__}_{batch}.onnx"
    example = (torch.from_numpy(images(batch)),)
    torch.onnx.export(net().eval(), example, path, dynamo=True, verbose=False)
    return from_onnx(path)


def simplified_gates(mod: tvm.IRModule) -> list[Gate]:
    mod = tvm.transform.Sequential(pipeline.simplify_passes())(mod)
    return find_gates(Dataflow(mod["main"]))


def check_gate(name: str, mod: tvm.IRModule) -> None:
    (gate,) = simplified_gates(mod)
    threshold = None if gate.threshold is None else gate.threshold.value
    assert gate.reason is None
    assert gate.layer == "body"
    assert (gate.group_size, threshold, gate.is_binary) == RECOGNISED[name]


def check_numbers(net: type[Net], mod: tvm.IRModule, batch: int, lowerings) -> None:
    x = images(batch)
    with torch.no_grad():
        expected = net().eval()(torch.from_numpy(x)).numpy()
    quick = quick_host()
    annotated = pipeline.annotate(mod, twin=False)
    infos = gate_infos(annotated["main"])
    thresholds = [info.threshold for info in infos if info.threshold is not None]
    for lowering in lowerings:
        executable = pipeline.build(
            pipeline.lower(pipeline.choose(annotated, quick, lowering), quick), quick
        )
        machine = virtual_machine(executable)
        arguments = [x, *[np.array(thresholds, "float32")] * bool(thresholds)]
        out, is_open = machine["main"](*map(tvm.runtime.tensor, arguments))
        assert np.abs(out.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
        assert 0 < is_open.numpy().mean() < 1  # else the comparison would show little


@pytest.mark.parametrize("name", GATED)
def test_exported_gates_are_recognised(name):
    check_gate(name, exported(GATED[name], 1))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", GATED)
def test_exported_networks_compute_the_same(name, batch):
    lowerings = ("dense", "if", "indexed") if batch > 1 else ("indexed",)
    check_numbers(GATED[name], exported(GATED[name], batch), batch, lowerings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("onnx")


ONNX = [name for name in GATED if name != "Assigned"]


@pytest.mark.parametrize("name", ONNX)
def test_onnx_gates_are_recognised_and_compute_the_same(name, folder):
    mod = through_onnx(GATED[name], 3, folder)
    check_gate(name, mod)
    check_numbers(GATED[name], mod, 3, ("indexed",))


def test_an_assignment_by_mask_needs_torch_export(folder):
    # ONNX has it as NonZero and ScatterND, whose sizes depend on the data.
    with pytest.raises(ModelError, match="ScatterND") as error:
        through_onnx(Assigned, 1, folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("net", "reasons"),
    [
        (SqueezeAndExcitation, []),  # nobody takes it for a gate
        (BareSigmoid, ["its multiplier can never be 0, so it closes nothing"]),
    ],
)
def test_multipliers_that_close_nothing_are_named(net, reasons, folder):
    for mod in (exported(net, 1), through_onnx(net, 1, folder)):
        assert [gate.reason for gate in simplified_gates(mod)] == reasons
        assert gate_infos(pipeline.annotate(mod, twin=False)["main"]) == []
