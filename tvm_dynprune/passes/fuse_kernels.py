# SPDX-License-Identifier: Apache-2.0
"""FuseKernels: group each convolution or pooling with its epilogue into a composite function.

Before::

    lv = R.nn.conv2d(x, w)
    lv1 = R.add(lv, b)                             # b (1, C, 1, 1), constant
    lv2 = R.nn.relu(lv1)
    y = R.multiply(lv2, mask)                      # mask (N, C, 1, 1)

After::

    y = conv1(x, w, b, mask)                       # Composite = "dynprune.conv2d"

The epilogue is bias, activation, scale, residual addition, activation, each optional, in this
order. Needs FoldBatchNorm before it; feeds AnnotateOpen.
Leaves a grouped convolution that is not depthwise, an average pooling whose last window ends past
the padding, and steps after a result that others read.
"""

import tvm
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Call, Var

from tvm_dynprune.passes.composite import PREFIX, add_composite
from tvm_dynprune.passes.dataflow import (
    Dataflow,
    Functions,
    channel_vector,
    constant_of,
    map_functions,
    op_name,
    rebuild,
    result_of,
    shape_of,
)
from tvm_dynprune.passes.gates import is_binary

_STAGES = ("convolution", "bias", "before", "scale", "residual", "after")
_POOLS = {"nn.max_pool2d": "max_pool2d", "nn.avg_pool2d": "avg_pool2d", "mean": "global_average"}


@tvm.transform.module_pass(opt_level=0, name="FuseKernels")
class FuseKernels:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, lambda func, functions: _Fuser(func, functions).run())


class _Fuser:
    def __init__(self, func: relax.Function, functions: Functions) -> None:
        self.func, self.functions, self.flow = func, functions, Dataflow(func)
        self.fused: set[Var] = set()
        self.taken = {gv.name_hint for gv in functions}

    def run(self) -> relax.Function:
        values = dict(self.flow.definition)
        for binding in self.flow.bindings:
            chain = self._chain(binding.var)
            if chain is None:
                continue
            kind, steps = chain
            self.fused.update(var for var, _, _ in steps)
            values[steps[-1][0]] = self._composite(kind, binding.var, steps)
        return rebuild(self.func, values, result_of(self.func))

    def _chain(self, var: Var) -> tuple[str, list[tuple[Var, str, Expr | None]]] | None:
        """Kind, and the fused variables with the step and the argument that each adds."""
        call = self.flow.definition[var]
        name = op_name(call)
        if name in _POOLS and _is_plain_pool(call):
            return _POOLS[name], [(var, "", None)]
        kind = _convolution_kind(call)
        if kind is None:
            return None
        steps: list[tuple[Var, str, Expr | None]] = [(var, "", None)]
        stage = "convolution"
        while (user := self.flow.only_user(steps[-1][0])) is not None:
            step = self._step(kind, stage, steps[-1][0], user, var)
            # Two convolutions may end in one addition; it is the first one's residual.
            if step is None or user in self.fused:
                break
            stage, label, argument = step
            steps.append((user, label, argument))
        return kind, steps

    def _step(
        self, kind: str, stage: str, current: Var, user: Var, convolution: Var
    ) -> tuple[str, str, Expr | None] | None:
        """(stage, label, argument) by which `user` continues the epilogue, if it does."""
        value, done = self.flow.definition[user], _STAGES.index(stage)
        name, shape = op_name(value), shape_of(user)
        label = activation_label(value)
        if label is not None:
            after = _STAGES.index("residual") <= done < _STAGES.index("after")
            if done < _STAGES.index("before"):
                return "before", label, None
            return ("after", label, None) if after else None
        if name not in ("add", "multiply") or shape != shape_of(current):
            return None
        other = value.args[1] if value.args[0].same_as(current) else value.args[0]
        if other.same_as(current):
            return None
        if name == "add" and done == 0 and channel_vector(other, shape[1]) is not None:
            return "bias", "bias", other
        if not isinstance(other, Var) or self.flow.depends_on(other, convolution):
            return None
        if name == "multiply" and done < _STAGES.index("scale"):
            return ("scale", "scale", other) if shape_of(other) == (*shape[:2], 1, 1) else None
        is_residual = name == "add" and shape_of(other) == shape and kind == "conv2d"
        if is_residual and done < _STAGES.index("residual"):
            return "residual", "residual", other
        return None

    def _composite(self, kind: str, var: Var, steps: list[tuple[Var, str, Expr | None]]) -> Call:
        call = self.flow.definition[var]
        roles = {"x": call.args[0]}
        if kind in ("conv2d", "depthwise_conv2d"):
            roles["weight"] = call.args[1]
        roles |= {label: argument for _, label, argument in steps if argument is not None}
        body = self._body(call, roles, steps)
        attributes = {
            "Composite": PREFIX + kind,
            "layer": var.name,
            "roles": list(roles),
            "epilogue": [label for _, label, _ in steps[1:]],
        }
        if "scale" in roles:
            attributes["binary_scale"] = int(is_binary(self.flow, roles["scale"]))
        func = body.with_attrs(attributes)
        global_var = add_composite(self.functions, self._unique(var.name), func)
        return relax.BlockBuilder().normalize(Call(global_var, list(roles.values())))

    def _body(
        self, call: Call, roles: dict[str, Expr], steps: list[tuple[Var, str, Expr | None]]
    ) -> relax.Function:
        params = {role: relax.Var(role, argument.ty) for role, argument in roles.items()}
        builder = relax.BlockBuilder()
        with builder.function("body", list(params.values()), private=True):
            with builder.dataflow():
                arguments = [params["x"], params.get("weight")][: len(call.args)]
                if "weight" not in params:
                    arguments = [params["x"], *call.args[1:]]
                value = builder.emit(Call(call.op, arguments, call.attrs, call.ty_args))
                for var, label, _ in steps[1:]:
                    step = self.flow.definition[var]
                    rest = [params[label]] if label in params else list(step.args[1:])
                    value = builder.emit(Call(step.op, [value, *rest], step.attrs, step.ty_args))
                output = builder.emit_output(value)
            builder.emit_func_output(output)
        return builder.finalize()["body"]

    def _unique(self, name: str) -> str:
        candidate, count = name, 0
        while candidate in self.taken:
            count += 1
            candidate = f"{name}_{count}"
        self.taken.add(candidate)
        return candidate


def activation_label(value: Expr) -> str | None:
    """The epilogue step of an activation; None for one that no kernel has inside.

    A clip must keep 0 at 0, as a closed channel's value is 0 and stays so.
    """
    if op_name(value) == "nn.relu":
        return "relu"
    if op_name(value) == "clip":
        low, high = (float(getattr(bound, "value", "nan")) for bound in value.args[1:3])
        if low <= 0 <= high:
            return f"clip:{low}:{high}"
    return None


def _convolution_kind(call: Expr) -> str | None:
    if op_name(call) != "nn.conv2d" or constant_of(call.args[1]) is None:
        return None
    x, weight = shape_of(call.args[0]), shape_of(call.args[1])
    if x is None or str(call.ty.dtype) != "float32" or call.attrs.data_layout != "NCHW":
        return None
    groups = int(call.attrs.groups)
    if groups == 1:
        return "conv2d"
    return "depthwise_conv2d" if groups == x[1] == weight[0] else None


def _is_plain_pool(call: Call) -> bool:
    shape = shape_of(call.args[0])
    if shape is None or len(shape) != 4 or str(call.ty.dtype) != "float32":
        return False
    if op_name(call) == "mean":
        axes = call.attrs.axis
        return bool(call.attrs.keepdims) and axes is not None and [int(a) for a in axes] == [2, 3]
    return call.attrs.layout == "NCHW" and not _averages_past_padding(call)


def _averages_past_padding(call: Call) -> bool:
    """Whether a window of an average pooling ends outside the padded plane (``ceil_mode``)."""
    if op_name(call) != "nn.avg_pool2d":
        return False
    pads = [int(pad) for pad in call.attrs.padding]
    for axis in (0, 1):
        last = (shape_of(call)[2 + axis] - 1) * int(call.attrs.strides[axis])
        end = last + int(call.attrs.pool_size[axis])
        if end > shape_of(call.args[0])[2 + axis] + pads[axis] + pads[2 + axis]:
            return True
    return False
