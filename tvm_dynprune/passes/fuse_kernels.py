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

from tvm_dynprune.passes.activations import ActivationSteps, activations_of
from tvm_dynprune.passes.composite import (
    BY_CHANNEL,
    FACTOR,
    PREFIX,
    SCALE_IN,
    SUMS,
    add_composite,
    geometry_of,
)
from tvm_dynprune.passes.dataflow import (
    Dataflow,
    Functions,
    channel_vector,
    map_functions,
    op_name,
    rebuild,
    result_of,
    shape_of,
    substitute,
)
from tvm_dynprune.passes.gates import is_attention, is_binary
from tvm_dynprune.passes.kernel_kinds import TAKES_STEPS, WITH_WEIGHT, kernel_kind
from tvm_dynprune.passes.normalisation import normalisation_of

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
    factors
        Constants of an activation, one number for each channel.
    """

    stage: str
    bindings: tuple[Var, ...]
    label: str = ""
    argument: Expr | None = None
    factors: tuple[Expr, ...] = ()

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
        plain = [found for found in self.activations.values() if not found.factors]
        self.activated = {var for found in plain for var in found.steps}
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
        steps = [_Step("convolution", (var,))]
        kind = "affine" if self._is_affine(var, call) else kernel_kind(call)
        if kind is None:
            return None
        if kind not in TAKES_STEPS:
            return kind, steps
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
        if var in self.activated | self.fused:
            return False
        shape = shape_of(var) or ()
        if len(shape) != 4 or shape[2:] == (1, 1) or shape_of(call.args[0]) != shape:
            return False
        found = normalisation_of(self.flow, var)
        return found is not None and found.source in self.flow.definition

    def _step(self, kind: str, steps: list[_Step]) -> _Step | None:
        """The step that continues the epilogue, if any does."""
        current, done = steps[-1].result, _STAGES.index(steps[-1].stage)
        has_bias = kind in WITH_WEIGHT
        if done == 0 and has_bias and (bias := self._bias(current)) is not None:
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
        if kind == "transposed_conv2d" or (kind == "group_norm" and name == "multiply"):
            return None
        other = value.args[1] if value.args[0].same_as(current) else value.args[0]
        if not isinstance(other, Var) or self.flow.depends_on(other, steps[0].result):
            return None
        if name == "multiply" and done < _STAGES.index("scale"):
            is_scale = shape_of(other) == (*shape[:2], 1, 1)
            return _Step("scale", (user,), "scale", other) if is_scale else None
        takes_residual = kind in (*SUMS, "group_norm")
        is_residual = name == "add" and shape_of(other) == shape and takes_residual
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

    def _scaled(self, call: Call) -> tuple[Expr, Expr] | None:
        """What a 1x1 convolution reads and what scales its channels, where to scale it is more.

        One number a channel, as squeeze and excitation computes: the weights take it in.
        """
        batch, c_out, height, width = shape_of(call)
        value = self.flow.value(call.args[0])
        if op_name(value) != "multiply" or call.args[0] in self.fused:
            return None
        if batch > 1 or geometry_of(call) != ((1, 1), (1, 1), (0, 0)) or c_out > height * width:
            return None
        if self.flow.only_user(call.args[0]) is None:
            return None
        for x, scale in (value.args, reversed(value.args)):
            if isinstance(x, Var) and isinstance(scale, Var):
                is_scale = shape_of(scale) == (*shape_of(value)[:2], 1, 1)
                if is_scale and is_attention(self.flow, x, scale):
                    return x, scale
        return None

    def _composite(self, kind: str, steps: list[_Step]) -> Call:
        var = steps[0].result
        call = self.flow.definition[var]
        roles = {"x": call.args[0]}
        if kind in WITH_WEIGHT:
            roles["weight"] = call.args[1]
        if kind == "conv2d" and (scaled := self._scaled(call)) is not None:
            roles["x"], roles[SCALE_IN] = scaled
        roles |= {step.label: step.argument for step in steps if step.argument is not None}
        factors = [each for step in steps for each in step.factors]
        roles |= {f"{FACTOR}{row}": each for row, each in enumerate(factors)}
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
                x = params["x"]
                if SCALE_IN in params:
                    x = builder.emit(relax.op.multiply(x, params[SCALE_IN]))
                arguments = [x, params.get("weight")][: len(call.args)]
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
    label = activation.label(sum(len(step.factors) for step in steps))
    return _Step(stage, activation.steps, label, factors=activation.factors) if fits else None
