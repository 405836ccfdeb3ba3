# SPDX-License-Identifier: Apache-2.0
"""FuseKernels: make each convolution with its epilogue, pooling or resizing a composite function.

Before::

    lv = R.nn.conv2d(x, w)
    lv1 = R.add(lv, b)                             # b (1, C, 1, 1), constant
    lv2 = R.nn.relu(lv1)
    y = R.multiply(lv2, mask)                      # mask (N, C, 1, 1)

After::

    y = conv1(x, w, b, mask)                       # Composite = "dynprune.conv2d"

The epilogue is bias, activation, scale, residual addition, activation, each optional, in this
order. Needs FoldBatchNorm before it; feeds AnnotateOpen.
Leaves an average pooling whose last window ends past the padding, and steps after a result that
others read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import tvm
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Call, Var

from tvm_dynprune.kernels.resize2d import COORDINATES, METHODS
from tvm_dynprune.passes.activations import ActivationSteps, activations_of
from tvm_dynprune.passes.composite import BY_CHANNEL, CONVOLUTIONS, PREFIX, SUMS, add_composite
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
    substitute,
)
from tvm_dynprune.passes.gates import is_binary
from tvm_dynprune.passes.normalisation import normalisation_of

_PLANES = {
    "nn.max_pool2d": "max_pool2d",
    "nn.avg_pool2d": "avg_pool2d",
    "image.resize2d": "resize2d",
    "nn.layer_norm": "layer_norm",
    "mean": "global_average",
}
_STAGES = ("convolution", "bias", "before", "scale", "residual", "after")


@dataclass(frozen=True)
class _Step:
    """Bindings that a kernel computes after those of the step before.

    Attributes
    ----------
    stage
        One of `_STAGES`.
    label
        Name of the epilogue's step; "" for the operator itself.
    argument
        What else the step reads.
    """

    stage: str
    bindings: tuple[Var, ...]
    label: str = ""
    argument: Expr | None = None

    @property
    def result(self) -> Var:
        """The variable that holds the step's result."""
        return self.bindings[-1]


@tvm.transform.module_pass(opt_level=0, name="FuseKernels")
class FuseKernels:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, lambda func, functions: _Fuser(func, functions).run())


class _Fuser:
    def __init__(self, func: relax.Function, functions: Functions) -> None:
        self.func, self.functions, self.flow = func, functions, Dataflow(func)
        # The last one of a tensor is all that is computed from it one by one.
        self.activations = {
            activation.source: activation
            for binding in self.flow.bindings
            for activation in activations_of(self.flow, binding.var)
        }
        self.activated = {var for found in self.activations.values() for var in found.steps}
        self.fused: set[Var] = set()
        self.taken = {gv.name_hint for gv in functions}

    def run(self) -> relax.Function:
        values = dict(self.flow.definition)
        for binding in self.flow.bindings:
            chain = self._chain(binding.var)
            if chain is None:
                continue
            kind, steps = chain
            self.fused.update(var for step in steps for var in step.bindings)
            values[steps[-1].result] = self._composite(kind, steps)
        return rebuild(self.func, values, result_of(self.func))

    def _chain(self, var: Var) -> tuple[str, list[_Step]] | None:
        """Kind, and the steps that are fused."""
        call = self.flow.definition[var]
        name, steps = op_name(call), [_Step("convolution", (var,))]
        if name in _PLANES and _is_by_plane(call):
            return _PLANES[name], steps
        kind = "affine" if self._is_affine(var, call) else _convolution_kind(call)
        if kind is None:
            return None
        while (step := self._step(kind, steps)) is not None:
            # Two convolutions may end in one addition; it is the first one's residual.
            if step.result in self.fused:
                break
            steps.append(step)
        return kind, steps

    def _is_affine(self, var: Var, call: Expr) -> bool:
        """Whether each channel is multiplied by a constant, as a batch norm of its own does.

        What normalises an image does it where the image is blocked.
        """
        if op_name(call) != "multiply" or not isinstance(call.args[0], Var):
            return False
        if var in self.activated:
            return False
        shape = shape_of(var) or ()
        if len(shape) != 4 or shape[2:] == (1, 1) or shape_of(call.args[0]) != shape:
            return False
        found = normalisation_of(self.flow, var)
        return found is not None and found.source in self.flow.definition

    def _step(self, kind: str, steps: list[_Step]) -> _Step | None:
        """The step that continues the epilogue, if any does."""
        current, done = steps[-1].result, _STAGES.index(steps[-1].stage)
        if done == 0 and (bias := self._bias(current)) is not None:
            return bias
        if (activation := self.activations.get(current)) is not None:
            return _activation_step(activation, kind, steps)
        user = self.flow.only_user(current)
        if user is None:
            return None
        value = self.flow.definition[user]
        name, shape = op_name(value), shape_of(user)
        if name not in ("add", "multiply") or shape != shape_of(current):
            return None
        if kind == "transposed_conv2d":
            return None
        other = value.args[1] if value.args[0].same_as(current) else value.args[0]
        if not isinstance(other, Var) or self.flow.depends_on(other, steps[0].result):
            return None
        if name == "multiply" and done < _STAGES.index("scale"):
            is_scale = shape_of(other) == (*shape[:2], 1, 1)
            return _Step("scale", (user,), "scale", other) if is_scale else None
        is_residual = name == "add" and shape_of(other) == shape and kind in SUMS
        if is_residual and done < _STAGES.index("residual"):
            return _Step("residual", (user,), "residual", other)
        return None

    def _bias(self, convolution: Var) -> _Step | None:
        user = self.flow.only_user(convolution)
        value = self.flow.value(user) if user is not None else None
        if op_name(value) != "add" or shape_of(user) != shape_of(convolution):
            return None
        other = value.args[1] if value.args[0].same_as(convolution) else value.args[0]
        if channel_vector(other, shape_of(user)[1]) is None:
            return None
        return _Step("bias", (user,), "bias", other)

    def _composite(self, kind: str, steps: list[_Step]) -> Call:
        var = steps[0].result
        call = self.flow.definition[var]
        roles = {"x": call.args[0]}
        if kind in (*CONVOLUTIONS, "transposed_conv2d", "affine"):
            roles["weight"] = call.args[1]
        roles |= {step.label: step.argument for step in steps if step.argument is not None}
        body = self._body(call, roles, steps)
        attributes = {
            "Composite": PREFIX + kind,
            "layer": var.name,
            "roles": list(roles),
            "epilogue": [step.label for step in steps[1:]],
        }
        if "scale" in roles:
            attributes["binary_scale"] = int(is_binary(self.flow, roles["scale"]))
        func = body.with_attrs(attributes)
        global_var = add_composite(self.functions, self._unique(var.name), func)
        return relax.BlockBuilder().normalize(Call(global_var, list(roles.values())))

    def _body(self, call: Call, roles: dict[str, Expr], steps: list[_Step]) -> relax.Function:
        params = {role: relax.Var(role, argument.ty) for role, argument in roles.items()}
        builder = relax.BlockBuilder()
        with builder.function("body", list(params.values()), private=True):
            with builder.dataflow():
                arguments = [params["x"], params.get("weight")][: len(call.args)]
                if "weight" not in params:
                    arguments = [params["x"], *call.args[1:]]
                value = builder.emit(Call(call.op, arguments, call.attrs, call.ty_args))
                for before, step in pairwise(steps):
                    emitted = {before.result: value}
                    for var in step.bindings:
                        own = self.flow.definition[var]
                        if step.argument is not None:
                            rest = [value, params[step.label]]
                            own = Call(own.op, rest, own.attrs, own.ty_args)
                        value = emitted[var] = builder.emit(substitute(own, emitted))
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


def _activation_step(activation: ActivationSteps, kind: str, steps: list[_Step]) -> _Step | None:
    """The step of an activation, where a kernel has one inside.

    One that does not keep 0 at 0 may only stand before the mask of a convolution: what is closed
    is 0 elsewhere.
    """
    done, labels = _STAGES.index(steps[-1].stage), [step.label for step in steps]
    if done < _STAGES.index("before"):
        stage, sums = "before", kind not in BY_CHANNEL or "bias" in labels
        fits = sums or activation.keeps_zero
    else:
        stage, fits = "after", activation.keeps_zero and steps[-1].stage == "residual"
    return _Step(stage, activation.steps, activation.label) if fits else None


def _convolution_kind(call: Expr) -> str | None:
    if op_name(call) == "nn.conv2d_transpose":
        return "transposed_conv2d" if _is_plain_transposed(call) else None
    if op_name(call) != "nn.conv2d" or constant_of(call.args[1]) is None:
        return None
    x, weight = shape_of(call.args[0]), shape_of(call.args[1])
    if x is None or str(call.ty.dtype) != "float32" or call.attrs.data_layout != "NCHW":
        return None
    groups = int(call.attrs.groups)
    if groups == 1:
        return "conv2d"
    return "depthwise_conv2d" if groups == x[1] == weight[0] else "grouped_conv2d"


def _is_plain_transposed(call: Call) -> bool:
    attrs, weight = call.attrs, shape_of(call.args[1])
    if constant_of(call.args[1]) is None or shape_of(call) is None:
        return False
    if attrs.data_layout != "NCHW" or attrs.kernel_layout != "IOHW" or int(attrs.groups) > 1:
        return False
    if str(call.ty.dtype) != "float32" or any(int(step) > 1 for step in attrs.dilation):
        return False
    # Else some pixels are no sums at all.
    return all(int(s) <= side for s, side in zip(attrs.strides, weight[2:], strict=True))


def _is_by_plane(call: Call) -> bool:
    shape = shape_of(call.args[0])
    if shape is None or len(shape) != 4 or str(call.ty.dtype) != "float32":
        return False
    if op_name(call) == "mean":
        axes = call.attrs.axis
        return bool(call.attrs.keepdims) and axes is not None and [int(a) for a in axes] == [2, 3]
    if op_name(call) == "nn.layer_norm":
        is_constant = all(constant_of(values) is not None for values in call.args[1:])
        is_affine = bool(call.attrs.center) and bool(call.attrs.scale)
        return is_constant and is_affine and [int(axis) for axis in call.attrs.axes] == [1]
    if op_name(call) == "image.resize2d":
        known = call.attrs.coordinate_transformation_mode in COORDINATES
        return known and call.attrs.layout == "NCHW" and call.attrs.method in METHODS
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
