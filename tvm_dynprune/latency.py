# SPDX-License-Identifier: Apache-2.0
"""What a gated network's layers will cost on a SoC: the compiler's cost model, for training.

Convolutions cost what `ChooseAlgorithm` compares; depthwise and transposed ones, for which it has
no model, their MACs over the lanes. The gates' own convolutions cost the same whatever is decided;
pooling and elementwise kernels cost nothing.
"""

import math
import warnings
from collections.abc import Iterator
from copy import deepcopy

import torch
import tvm
from torch import nn
from tvm import relax

from tvm_dynprune.frontend import from_exported
from tvm_dynprune.nn.export import export
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.latency import LatencyTable
from tvm_dynprune.nn.macs import plan_macs
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.choose_algorithm import CostModel, fits_cache
from tvm_dynprune.passes.composite import CONVOLUTIONS, as_composite
from tvm_dynprune.passes.conv2d_spec import kernel_target
from tvm_dynprune.passes.dataflow import Dataflow, shape_of
from tvm_dynprune.soc import Soc


def latency_table(model: nn.Module, input_shape: tuple[int, int, int], soc: Soc) -> LatencyTable:
    """Price the layers of a network on a SoC; nothing is built.

    Parameters
    ----------
    model
        A network with gates, each of its layers called once. It is left as it is.
    input_shape
        (C, H, W) of its images.
    soc
        Where it will run; see `load_soc`.

    Raises
    ------
    ModelError
        The model cannot be exported or imported.
    """
    mod = _chosen(model, input_shape, soc)
    registers = kernel_target(soc).transform_registers
    costs = CostModel(soc.lanes, soc.cost, fits_cache(mod, soc.cache_kib), registers=registers)
    macs = plan_macs(model, input_shape).dense
    names = {name.replace(".", "_"): name for name in macs}
    layers, fixed = {}, 0.0
    for layer, func in _convolutions(mod, "main"):
        corners = corner_costs(costs, func)
        if layer in names:
            layers[names[layer]] = corners
        else:
            fixed += _cheapest(corners)
    others = {name: macs[name] / soc.lanes for name in macs if name not in layers}
    layers |= {name: {"transposed": [cost] * 4} for name, cost in others.items()}
    dense = [_cheapest(corner_costs(costs, func)) for _, func in _convolutions(mod, "dense")]
    return LatencyTable(sum(dense) + sum(others.values()), fixed, layers)


def corner_costs(costs: CostModel, func: relax.Function) -> dict[str, list[float]]:
    """Costs of a composite convolution by algorithm, as in `LatencyTable.layers`."""
    sides = [(open_in, open_out) for open_in in (0.0, 1.0) for open_out in (0.0, 1.0)]
    if str(func.attrs["Composite"]).endswith("depthwise_conv2d"):
        weight = func.params[[str(role) for role in func.attrs["roles"]].index("weight")]
        pixels = (shape_of(func.body) or ())[2:]
        products = math.prod((*(shape_of(weight) or ()), *pixels))
        return {"depthwise": [open_out * products / costs.lanes for _, open_out in sides]}
    corners = [costs.costs(func, *side) for side in sides]
    if str(func.attrs["lowering"]) == "if":  # what is closed is not even called
        closed = dict.fromkeys(corners[0], 0.0)
        corners = [open_ if side[1] else closed for side, open_ in zip(sides, corners, strict=True)]
    return {name: [corner[name] for corner in corners] for name in corners[0]}


def _cheapest(corners: dict[str, list[float]]) -> float:
    """With all channels open."""
    return min(whole for *_, whole in corners.values())


def _chosen(model: nn.Module, input_shape: tuple[int, int, int], soc: Soc) -> tvm.IRModule:
    """The network as the compiler would choose its kernels, and its dense twin."""
    model = deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        for gate in gates_of(model).values():
            gate.spread()  # equal gates of one tensor would be merged
        program = export(model.cpu(), torch.rand(2, *input_shape))
    with warnings.catch_warnings(), pipeline.pass_context():
        warnings.filterwarnings("ignore", "`isinstance.treespec", FutureWarning)  # torch's own
        return pipeline.choose(pipeline.annotate(from_exported(program)), soc)


def _convolutions(mod: tvm.IRModule, function: str) -> Iterator[tuple[str, relax.Function]]:
    """Layer names and composite functions of one of the module's networks, in order."""
    functions = dict(mod.functions_items())
    for binding in Dataflow(mod[function]).bindings:
        composite = as_composite(functions, binding.value)
        if composite is not None and composite.kind in CONVOLUTIONS:
            yield composite.layer, composite.func
