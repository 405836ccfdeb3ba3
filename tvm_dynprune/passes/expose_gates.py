# SPDX-License-Identifier: Apache-2.0
"""ExposeGates: make thresholds an input and the gates' decisions an output.

Before::

    def main(x):
        open = R.greater(logits, 0.5)
        ...
        return y

After::

    def main(x, thresholds):                       # thresholds (T,) float32
        open = R.greater(logits, R.strided_slice(thresholds, ...))
        ...
        return (y, nonzero)                        # per gate (N, C) bool: where its mask is not 0

A gate whose decision is no comparison with one constant (top-k, argmax) has no threshold. The
function attribute ``gates`` lists the gates, in order, as JSON; see `GateInfo`.
Needs the simplifying passes before it; feeds FuseKernels.
"""

import json
from dataclasses import asdict, dataclass

import tvm
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Call, Var, op

from tvm_dynprune.passes.dataflow import (
    Dataflow,
    Functions,
    constant_of,
    map_functions,
    rebuild,
    result_of,
    shape_of,
)
from tvm_dynprune.passes.gates import Gate, Threshold, find_gates


@dataclass(frozen=True)
class GateInfo:
    """What a manifest says of one gate; `threshold` is None if it has none to change."""

    layer: str
    channels: int
    group_size: int
    threshold: float | None
    threshold_index: int | None


@tvm.transform.module_pass(opt_level=0, name="ExposeGates")
class ExposeGates:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, _expose)


def gate_infos(func: relax.Function) -> list[GateInfo]:
    """The gates of a function that ExposeGates has seen."""
    if not func.attrs or "gates" not in func.attrs:
        return []
    return [GateInfo(**item) for item in json.loads(str(func.attrs["gates"]))]


def _expose(func: relax.Function, _functions: Functions) -> relax.Function:
    if func.attrs and "gates" in func.attrs:
        return func
    flow = Dataflow(func)
    gates = [gate for gate in find_gates(flow) if gate.reason is None]
    values = dict(flow.definition)
    indices = _threshold_indices(gates)
    params = list(func.params)
    if indices:
        thresholds = relax.Var("thresholds", relax.TensorType((len(indices),), "float32"))
        params.append(thresholds)
        for threshold, index in indices.items():
            _replace_constant(values, threshold, thresholds, index)
    fields = [_nonzero(values, gate) for gate in gates]
    result = result_of(func)
    outputs = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    infos = [_info(gate, indices) for gate in gates]
    func = rebuild(func, values, relax.Tuple([*outputs, *fields]), params)
    return func.with_attrs({"gates": json.dumps(infos), "num_outputs": len(outputs)})


def _threshold_indices(gates: list[Gate]) -> dict[Threshold, int]:
    """Position of each distinct threshold in the new parameter."""
    distinct = dict.fromkeys(gate.threshold for gate in gates if gate.threshold is not None)
    return {threshold: index for index, threshold in enumerate(distinct)}


def _replace_constant(
    values: dict[Var, Expr], threshold: Threshold, thresholds: Var, index: int
) -> None:
    call, builder = values[threshold.comparison], relax.BlockBuilder()
    piece = builder.normalize(op.strided_slice(thresholds, [0], [index], [index + 1]))
    var = relax.DataflowVar("threshold", piece.ty)
    values[var] = piece
    rank = constant_of(call.args[threshold.operand]).ndim
    if rank > 1:
        shaped = builder.normalize(op.reshape(var, (1,) * rank))
        var = relax.DataflowVar("threshold", shaped.ty)
        values[var] = shaped
    arguments = list(call.args)
    arguments[threshold.operand] = var
    new = Call(call.op, arguments, call.attrs, call.ty_args)
    values[threshold.comparison] = builder.normalize(new)


def _nonzero(values: dict[Var, Expr], gate: Gate) -> Var:
    """A variable (N, C) bool: where the gate's multiplier is not 0."""
    builder, shape = relax.BlockBuilder(), shape_of(gate.mask)
    nonzero = builder.normalize(op.not_equal(gate.mask, relax.const(0, "float32")))
    var = relax.DataflowVar("nonzero", nonzero.ty)
    values[var] = nonzero
    flat = builder.normalize(op.reshape(var, shape[:2]))
    result = relax.DataflowVar("open", flat.ty)
    values[result] = flat
    return result


def _info(gate: Gate, indices: dict[Threshold, int]) -> dict:
    threshold = gate.threshold
    return asdict(
        GateInfo(
            layer=gate.layer,
            channels=shape_of(gate.mask)[1],
            group_size=gate.group_size,
            threshold=None if threshold is None else threshold.value,
            threshold_index=None if threshold is None else indices[threshold],
        )
    )
