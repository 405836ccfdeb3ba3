# SPDX-License-Identifier: Apache-2.0
"""Recognise gates by data flow: which multiplications close channels, and why others do not.

A gate multiplies a feature map (N, C, H, W) by a tensor (N, C, 1, 1) that is not computed from the
convolution it closes and can be exactly 0. Nothing has to be known about how it came to be.
"""

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Call, Var

from tvm_dynprune.passes.activations import activation_of
from tvm_dynprune.passes.dataflow import Dataflow, constant_of, op_name, operands, shape_of

_ELEMENTWISE = ("nn.relu", "clip", "nn.leakyrelu", "tanh", "nn.silu", "nn.gelu", "sigmoid")
_PASSES_CHANNELS = (*_ELEMENTWISE, "nn.max_pool2d", "nn.avg_pool2d")
_LAYOUT = ("reshape", "broadcast_to", "expand_dims", "squeeze", "permute_dims", "repeat", "tile")
_KEEPS_POSITIVE = ("add", "multiply", "divide", "sqrt", "mean", "sum", "astype", "minimum", "split")
_COMPARISONS = ("greater", "greater_equal", "less", "less_equal")
_HEAVY = ("nn.conv2d", "matmul", "nn.conv1d", "mean", "nn.avg_pool2d", "nn.max_pool2d")


@dataclass(frozen=True)
class Gate:
    """One multiplication of a feature map by a per-channel tensor.

    `reason` says why it closes nothing; it is None for a gate that is used.
    """

    layer: str
    product: Var  # the multiplication's result
    feature: Var  # the ungated tensor
    mask: Var  # (N, C, 1, 1)
    group_size: int
    is_binary: bool
    threshold: "Threshold | None"
    reason: str | None


@dataclass(frozen=True)
class Threshold:
    """The constant that a gate compares with."""

    comparison: Var
    operand: int
    value: float


def find_gates(flow: Dataflow) -> list[Gate]:
    """Every multiplication that looks like a gate, in the order of the data flow."""
    gates = []
    for binding in flow.bindings:
        for feature, mask in _factors(binding.value):
            if is_attention(flow, feature, mask):
                continue
            gates.append(_classify(flow, binding.var, feature, mask))
            break
    return gates


def is_attention(flow: Dataflow, feature: Var, mask: Var) -> bool:
    """Whether a tensor is scaled by a bounded function of itself, as squeeze and excitation does.

    A mask would be one too, but for its comparison.
    """
    if not flow.depends_on(mask, feature) or _threshold(flow, mask) is not None:
        return False
    value = flow.definition[mask]
    while op_name(value) in _LAYOUT:
        value = flow.value(value.args[0])
    return not can_be_zero(flow, mask) or op_name(value) in ("clip", "multiply")


def _factors(value: Expr) -> list[tuple[Var, Var]]:
    """(feature map, per-channel tensor) of a multiplication, if it has that form."""
    if op_name(value) != "multiply":
        return []
    left, right = value.args
    if not (isinstance(left, Var) and isinstance(right, Var)):
        return []
    found = []
    for feature, mask in ((left, right), (right, left)):
        size, shape = shape_of(feature), shape_of(mask)
        if size is not None and len(size) == 4 and size[2:] != (1, 1):
            if shape == (size[0], size[1], 1, 1):
                found.append((feature, mask))
    return found


def _classify(flow: Dataflow, product: Var, feature: Var, mask: Var) -> Gate:
    convolution, blocker = _producer(flow, feature)
    reason = None
    if convolution is not None and flow.depends_on(mask, convolution):
        reason = "its multiplier is computed from the convolution's own result"
    elif not can_be_zero(flow, mask):
        reason = "its multiplier can never be 0, so it closes nothing"
    elif blocker is not None:
        reason = blocker
    elif convolution is None:
        reason = "what it multiplies does not come from a convolution"
    layer = (feature if convolution is None else convolution).name
    return Gate(
        layer,
        product,
        feature,
        mask,
        group_size(flow, mask),
        is_binary(flow, mask),
        _threshold(flow, mask),
        reason,
    )


def _producer(flow: Dataflow, feature: Var) -> tuple[Var | None, str | None]:
    """The convolution that `feature` comes from, and what keeps it from being skipped."""
    current, inside = feature, False
    while True:
        activation = activation_of(flow, current)
        if activation is not None and (inside or flow.only_user(current) is not None):
            current, inside = activation.source, True  # which nobody else reads
            continue
        value = flow.definition.get(current)
        name = op_name(value) if value is not None else ""
        is_convolution = name == "nn.conv2d"
        if value is None or not (is_convolution or name in (*_PASSES_CHANNELS, "add", "concat")):
            return None, None
        if flow.only_user(current) is None and not inside:
            users = sorted({user.name for user in flow.users.get(current, [])})
            if is_convolution or _leads_to_convolution(flow, current):
                owner = _first_convolution(flow, current)
                if owner is not None and _mask_depends(flow, feature, owner):
                    return owner, None  # reported as depending on its own result
                return owner, f"the ungated result is also read by {', '.join(users)}"
            return None, None
        if is_convolution:
            return current, None
        variables = [v for v in operands(value) if len(shape_of(v) or ()) == 4]
        if name in ("add", "concat") and len(variables) > 1:
            return _first_convolution(flow, current), None
        current, inside = variables[0], False


def _first_convolution(flow: Dataflow, var: Var) -> Var | None:
    """The nearest convolution before `var`."""
    stack, seen = [var], set()
    while stack:
        current = stack.pop(0)
        value = flow.definition.get(current)
        if op_name(value) == "nn.conv2d":
            return current
        if value is not None and current not in seen:
            seen.add(current)
            stack.extend(operands(value))
    return None


def _leads_to_convolution(flow: Dataflow, var: Var) -> bool:
    return _first_convolution(flow, var) is not None


def _mask_depends(flow: Dataflow, feature: Var, convolution: Var) -> bool:
    for user in flow.users.get(feature, []):
        for _, mask in _factors(flow.definition[user]):
            if flow.depends_on(mask, convolution):
                return True
    return False


def can_be_zero(flow: Dataflow, expr: Expr) -> bool:
    """False if the tensor is positive whatever the input, as a sigmoid is."""
    return not _is_positive(flow, expr)


def _is_positive(flow: Dataflow, expr: Expr) -> bool:
    values = constant_of(expr)
    if values is not None:
        return bool((values > 0).all())
    value = flow.value(expr)
    if isinstance(value, relax.TupleGetItem):
        value = flow.value(value.tuple_value)
    if not isinstance(value, Call):
        return False
    name, arguments = op_name(value), list(value.args)
    if name in ("sigmoid", "exp", "nn.softmax", "nn.softplus"):
        return True
    if name == "clip":
        low = arguments[1]
        return float(getattr(low, "value", 0)) > 0
    if name == "maximum":
        return any(_is_positive(flow, argument) for argument in arguments)
    if name in (*_LAYOUT, *_KEEPS_POSITIVE):
        tensors = [a for a in arguments if shape_of(a) is not None]
        return all(_is_positive(flow, argument) for argument in tensors)
    return False


def is_binary(flow: Dataflow, expr: Expr) -> bool:
    """True if each element is surely 0 or 1."""
    values = constant_of(expr)
    if values is not None:
        return bool(np.isin(values, (0, 1)).all())
    if str(expr.ty.dtype) == "bool":
        return True
    value = flow.value(expr)
    if not isinstance(value, Call):
        return False
    name, arguments = op_name(value), list(value.args)
    if name in (*_LAYOUT, "astype"):
        return is_binary(flow, arguments[0])
    if name == "argmax":
        shape, axis = shape_of(arguments[0]), value.attrs.axis
        return shape is not None and axis is not None and shape[int(axis)] == 2
    if name in ("multiply", "where", "minimum", "maximum"):
        return all(is_binary(flow, argument) for argument in arguments)
    if name == "scatter_elements":
        return is_binary(flow, arguments[0]) and is_binary(flow, arguments[2])
    return name in ("one_hot", "zeros", "ones", "zeros_like", "ones_like")


def group_size(flow: Dataflow, mask: Var) -> int:
    """How many neighbouring channels share one decision, as far as the data flow tells.

    Follows the elements of the tensors that `mask` is laid out from, as numbers, through reshapes,
    broadcasts and repeats; 1 if some channel stands for itself.
    """
    origin = _element_origin(flow, mask)
    batch, channels = shape_of(mask)[:2]
    for size in range(channels, 1, -1):
        if channels % size == 0:
            grouped = origin.reshape(batch, channels // size, size)
            if (grouped == grouped[:, :, :1]).all():
                return size
    return 1


def _element_origin(flow: Dataflow, expr: Expr) -> np.ndarray:
    """For each element of a tensor a number; equal numbers mean the same source element."""
    shape = shape_of(expr)
    value = flow.value(expr)
    own = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    name = op_name(value)
    if constant_of(expr) is not None:
        return np.unique(constant_of(expr), return_inverse=True)[1].reshape(shape)
    if not isinstance(value, Call):
        return own
    if name in ("astype", "nn.relu", "clip", "sigmoid", *_COMPARISONS, "multiply", "where"):
        tensors = [a for a in value.args if shape_of(a) is not None]
        if name == "multiply":  # a factor that is never 0 decides nothing
            tensors = [a for a in tensors if can_be_zero(flow, a)] or tensors
        return _combined([_element_origin(flow, a) for a in tensors], shape)
    if name in _LAYOUT:
        return _relayout(value, _element_origin(flow, value.args[0]), shape)
    return own


def _combined(origins: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    stacked = np.stack([np.broadcast_to(o, shape).reshape(-1) for o in origins], axis=1)
    return np.unique(stacked, axis=0, return_inverse=True)[1].reshape(shape)


def _relayout(call: Call, source: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    name = op_name(call)
    if name == "broadcast_to":
        return np.broadcast_to(source, shape)
    if name == "permute_dims":
        axes = call.attrs.axes
        return source.transpose(None if axes is None else [int(a) for a in axes])
    if name == "repeat":
        axis = call.attrs.axis
        return source.repeat(int(call.attrs.repeats), None if axis is None else int(axis))
    if name == "tile":
        return np.tile(source, [int(r) for r in call.attrs.repeats])
    return source.reshape(shape)


def _threshold(flow: Dataflow, mask: Var) -> Threshold | None:
    """The scalar that decides over the mask, found by walking back to a comparison."""
    stack, seen = [mask], set()
    while stack:
        var = stack.pop(0)
        value = flow.definition.get(var)
        if value is None or var in seen or op_name(value) in _HEAVY:
            continue
        seen.add(var)
        if op_name(value) in _COMPARISONS:
            for operand in (1, 0):
                constant = constant_of(value.args[operand])
                if constant is not None and constant.size == 1:
                    return Threshold(var, operand, float(constant.reshape(())))
        stack.extend(operands(value))
    return None
