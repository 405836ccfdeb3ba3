# SPDX-License-Identifier: Apache-2.0
"""Recognise activations: elementwise functions of one tensor, in one step or several.

Importers write ``x * sigmoid(x)`` for SiLU, ``x * clip(x + 3, 0, 6) / 6`` for hard swish, and five
steps for Mish. What counts is that all of it is computed elementwise from one tensor and numbers.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isinf
from typing import Any

from tvm.ir import Expr
from tvm.relax import Var
from tvm_ffi import structural_equal

from tvm_dynprune.kernels.activation import OPERATORS, Activation, Formula
from tvm_dynprune.passes.dataflow import (
    Dataflow,
    channel_vector,
    constant_of,
    op_name,
    operands,
    shape_of,
)

_MOST_STEPS = 16
# Functions of one number that are 0 at 0.
_ZERO_AT_ZERO = (
    "nn.relu", "nn.silu", "nn.gelu", "nn.gelu_tanh", "mish", "tanh", "negative", "abs",
)  # fmt: skip


@dataclass(frozen=True)
class ActivationSteps:
    """The bindings by which a function of `source` is computed, the last of which is its result."""

    source: Var
    steps: tuple[Var, ...]
    formula: Any  # see `Formula`
    factors: tuple[Expr, ...] = ()  # constants, one number for each channel, of its rows

    @property
    def result(self) -> Var:
        """The variable that holds the activation."""
        return self.steps[-1]

    def label(self, first: int = 0) -> str:
        """The step of an epilogue: relu, clip:LOW:HIGH or formula:TEXT; factors from `first` on."""
        match self.formula:
            case ["nn.relu", "x"]:
                return "relu"
            case ["clip", "x", low, high]:
                return f"clip:{low}:{high}"
        return f"formula:{json.dumps(_renumbered(self.formula, first))}"

    @property
    def keeps_zero(self) -> bool:
        """Whether 0 surely stays 0, so that a closed channel's zeros need not be computed."""
        return _keeps_zero(self.formula)


def activation_of(flow: Dataflow, var: Var) -> ActivationSteps | None:
    """The activation whose result is `var`, as far back as it goes; None if it is none."""
    return next(iter(reversed(list(activations_of(flow, var)))), None)


def activations_of(flow: Dataflow, var: Var) -> Iterator[ActivationSteps]:
    """The activations whose result is `var`, from the nearest source to the farthest.

    Nobody but its own steps reads an activation's source and what lies between.
    """
    if shape_of(var) is None or str(var.ty.dtype) != "float32" or var not in flow.definition:
        return
    steps: list[Var] = [var]
    while len(steps) <= _MOST_STEPS:
        reads = {v for step in steps for v in operands(flow.definition[step])} - set(steps)
        if not _is_step(flow, steps[-1]):
            return
        if len(reads) == 1:
            (source,) = reads
            if structural_equal(source.ty, var.ty) and _is_private(flow, source, steps):
                ordered = tuple(sorted(steps, key=flow.position.__getitem__))
                factors: list[Expr] = []
                formula = _formula(flow, var, source, factors)
                yield ActivationSteps(source, ordered, formula, tuple(factors))
        # The last one computed: it may read the others.
        latest = max(reads, key=lambda v: flow.position.get(v, -1), default=None)
        if latest is None or latest not in flow.definition:
            return
        steps.append(latest)


def parse_activation(label: str) -> Activation | Formula:
    """The activation that an epilogue step names."""
    kind, _, rest = label.partition(":")
    if kind == "relu":
        return Activation(0.0, None)
    if kind == "formula":
        return Formula(rest)
    bounds = [None if isinf(float(bound)) else float(bound) for bound in rest.split(":")]
    return Activation(*bounds)


def is_never_zero(label: str) -> bool:
    """Whether an epilogue step's result is never 0, so that it closes nothing."""
    return label in ('formula:["sigmoid", "x"]', 'formula:["exp", "x"]')


def clip_keeps_zero(clip: Expr) -> bool:
    """Whether a clip's bounds have 0 between them."""
    low, high = (float(getattr(bound, "value", "nan")) for bound in clip.args[1:3])
    return low <= 0 <= high


def _is_step(flow: Dataflow, var: Var) -> bool:
    value = flow.definition[var]
    if op_name(value) == "nn.prelu":
        return isinstance(value.args[0], Var) and _is_slope(value)
    return op_name(value) in OPERATORS and all(
        shape_of(a) == shape_of(var) if isinstance(a, Var) else _is_factor(a, var)
        for a in value.args
    )


def _is_slope(prelu: Expr) -> bool:
    slope = constant_of(prelu.args[1])
    return slope is not None and (slope.size == 1 or int(prelu.attrs.axis) == 1)


def _is_factor(expr: Expr, var: Var) -> bool:
    """Whether `expr` is a number, or a number for each channel of `var`."""
    shape = shape_of(var)
    by_channel = len(shape) == 4 and channel_vector(expr, shape[1]) is not None
    return by_channel or _number(expr) is not None


def _is_private(flow: Dataflow, source: Var, steps: list[Var]) -> bool:
    inner = {source, *steps[1:]}
    return not inner & flow.outputs and all(set(flow.users[v]) <= set(steps) for v in inner)


def _number(expr: Expr) -> float | None:
    """The one number that a constant or a bound of a clip is, or each of a constant's elements."""
    value = constant_of(expr)
    if value is not None:
        return float(value.flat[0]) if value.size and (value == value.flat[0]).all() else None
    bound = getattr(expr, "value", None)
    return float(bound) if isinstance(bound, int | float) else None


def _formula(flow: Dataflow, expr: Expr, source: Var, factors: list[Expr]) -> Any:
    """The formula of `expr`; appends to `factors` what it has for each channel."""
    if expr.same_as(source):
        return "x"
    number = _number(expr)
    if number is not None:
        return number
    if not isinstance(expr, Var):
        factors.append(expr)
        return ["factor", len(factors) - 1]
    value = flow.definition[expr]
    name, arguments = op_name(value), [_formula(flow, a, source, factors) for a in value.args]
    if name == "nn.leakyrelu":
        arguments.append(float(value.attrs.alpha))
    return _simplified([name, *arguments])


def _renumbered(formula: Any, first: int) -> Any:
    match formula:
        case ["factor", row]:
            return ["factor", first + row]
        case [name, *arguments]:
            return [name, *(_renumbered(argument, first) for argument in arguments)]
    return formula


def _simplified(formula: list) -> list:
    """A clip of a clip is one, and a maximum or minimum with a number is a clip too."""
    match formula:
        case ["maximum" | "minimum" as name, a, b] if isinstance(a, float) or isinstance(b, float):
            bound, x = (a, b) if isinstance(a, float) else (b, a)
            bounds = [bound, inf] if name == "maximum" else [-inf, bound]
            return _simplified(["clip", x, *bounds])
        case ["nn.relu", ["clip", *_] as clip]:
            return _simplified(["clip", clip, 0.0, inf])
        case ["clip", ["nn.relu", x], low, high]:
            return _simplified(["clip", ["clip", x, 0.0, inf], low, high])
        case ["clip", ["clip", x, low, high], lower, higher]:
            bounds = [min(max(bound, lower), higher) for bound in (low, high)]
            return _simplified(["clip", x, *bounds])
        case ["clip", x, 0.0, float(high)] if high == inf:
            return ["nn.relu", x]
        case ["multiply", x, 1.0] | ["multiply", 1.0, x]:
            return x
        case ["log", ["add", ["exp", x], 1.0] | ["add", 1.0, ["exp", x]]]:
            return ["softplus", x]
        case ["where", ["greater", x, 20.0], same, ["softplus", again]] if x == same == again:
            return ["softplus", x]
        case ["multiply", x, ["tanh", ["softplus", same]]] if x == same:
            return ["mish", x]
        case ["nn.prelu", x, slope]:
            return ["nn.leakyrelu", x, slope]
        case ["where", ["greater", x, 0.0], same, ["multiply", slope, again]] if x == same == again:
            return ["nn.leakyrelu", x, slope]
    return formula


def _keeps_zero(formula: Any) -> bool:
    match formula:
        case "x":
            return True
        case ["multiply", a, b]:
            return _keeps_zero(a) or _keeps_zero(b)
        case ["clip", x, low, high]:
            return _keeps_zero(x) and low <= 0 <= high
        case [str(name), x] if name in _ZERO_AT_ZERO:
            return _keeps_zero(x)
        case ["nn.leakyrelu", x, _]:
            return _keeps_zero(x)
        case ["add" | "subtract" | "maximum" | "minimum", a, b]:
            return _keeps_zero(a) and _keeps_zero(b)
        case ["divide", a, float(b)]:
            return _keeps_zero(a) and b != 0
    return False
