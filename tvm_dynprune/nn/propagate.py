# SPDX-License-Identifier: Apache-2.0
"""Which channels are zero and which nobody needs, followed through a traced network.

Works on what the gates decided, never on activations: a channel that happens to be 0 is computed
all the same. A state is a tensor (N, C) of 1 for open and 0 for zero (or not needed); numbers
between are allowed, so that the same rules give a differentiable cost of soft gates ("and" is a
product). None is a state too: all open, all needed. So is a tensor (N, 1): one decision for all
channels, as a block's gate takes it; what it closes needs none of what comes before.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tvm_dynprune.nn.chains import MUL, called_module, is_activation, is_depthwise
from tvm_dynprune.nn.gates import Gate

State = Tensor | None


class Op(Enum):
    """How a node treats channels."""

    GATE = auto()
    """The mask itself."""
    MIX = auto()
    """Convolution, linear layer: needs all input channels, and its results are not zero."""
    GROUPED = auto()
    """Convolution of several groups: likewise, but all input channels count as open."""
    DEPTHWISE = auto()
    """Channelwise convolution; keeps zeros if it has no bias."""
    ZERO_KEEPING = auto()
    """Channelwise, and 0 stays 0: ReLU, ReLU6, pooling, dropout, flatten, mean over pixels."""
    CHANNELWISE = auto()
    """Channelwise, but 0 may become something else: batch norm, other activations."""
    MUL = auto()
    ADD = auto()
    CAT = auto()
    OPAQUE = auto()
    """Anything else: needs everything, zero nowhere."""


_ZERO_KEEPING_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
_ZERO_KEEPING_FUNCTIONS = (
    torch.relu,
    F.relu,
    F.relu6,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.dropout,
    "relu",
    "relu_",
    "contiguous",
)
_RESIZED = ("nearest", "bilinear")  # modes that keep 0 at 0, as the compiler knows them
_FLATTEN = (torch.flatten, "flatten", "view", "reshape")
_MEAN = (torch.mean, "mean")
ADD = (torch.add, operator.add, operator.iadd, "add", "add_")
_CAT = (torch.cat, torch.concat)
Shapes = Mapping[fx.Node, torch.Size]


def classify(node: fx.Node, modules: Mapping[str, nn.Module], shapes: Shapes) -> Op:
    """Say how a node treats channels, given the shape of every tensor in the graph."""
    if node.op == "call_module":
        return _classify_module(node, dict(modules), shapes)
    if node.op not in ("call_function", "call_method") or node not in shapes:
        return Op.OPAQUE
    tensors = [source for source in node.all_input_nodes if source in shapes]
    if node.target in MUL:
        return Op.MUL if len(tensors) == 2 else Op.ZERO_KEEPING
    if node.target in ADD:
        return Op.ADD if len(tensors) == 2 else Op.CHANNELWISE
    if node.target in _CAT:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return Op.CAT if dim in (1, 1 - len(shapes[node])) else Op.OPAQUE
    if node.target in _ZERO_KEEPING_FUNCTIONS:
        return Op.ZERO_KEEPING
    if node.target in (torch.clamp, "clamp", "clamp_"):
        return Op.ZERO_KEEPING if _has_zero_within(node) else Op.CHANNELWISE
    if node.target is F.pad:
        return Op.ZERO_KEEPING if _pads_with_zeros(node) else Op.OPAQUE
    if node.target is F.interpolate:
        is_resized = node.kwargs.get("mode", "nearest") in _RESIZED
        return Op.ZERO_KEEPING if is_resized else Op.OPAQUE
    if node.target in (*_FLATTEN, *_MEAN):
        return Op.ZERO_KEEPING if _keeps_channels_apart(node, shapes) else Op.OPAQUE
    return Op.CHANNELWISE if is_activation(node, dict(modules)) else Op.OPAQUE


def _classify_module(node: fx.Node, modules: dict[str, nn.Module], shapes: Shapes) -> Op:
    module = called_module(node, modules)
    if isinstance(module, Gate):
        return Op.GATE
    if isinstance(module, nn.Conv2d):
        if is_depthwise(module):
            return Op.DEPTHWISE
        return Op.MIX if module.groups == 1 else Op.GROUPED
    if isinstance(module, nn.Linear):
        return Op.MIX
    if isinstance(module, nn.Flatten):
        return Op.ZERO_KEEPING if _keeps_channels_apart(node, shapes) else Op.OPAQUE
    if isinstance(module, nn.Upsample):
        return Op.ZERO_KEEPING if module.mode in _RESIZED else Op.OPAQUE
    if isinstance(module, _ZERO_KEEPING_MODULES):
        return Op.ZERO_KEEPING
    is_channelwise = isinstance(module, nn.BatchNorm2d) or is_activation(node, modules)
    return Op.CHANNELWISE if is_channelwise else Op.OPAQUE


def _arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """What a function is given besides its tensor, by name."""
    return dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


def _has_zero_within(clamp: fx.Node) -> bool:
    """Whether the bounds of a clamp, numbers or none, have 0 between them."""
    given = _arguments(clamp, "min", "max")
    low, high = given.get("min"), given.get("max")
    return (low is None or low <= 0) and (high is None or high >= 0)


def _pads_with_zeros(pad: fx.Node) -> bool:
    """Whether a padding is of planes, and by what is 0 where they are."""
    given = _arguments(pad, "pad", "mode", "value")
    is_zero = given.get("mode", "constant") != "constant" or not given.get("value")
    return len(given["pad"]) <= 4 and is_zero


def _keeps_channels_apart(node: fx.Node, shapes: Shapes) -> bool:
    """Whether a reshape or mean of (N, C, H, W) gives (N, C, …) or (N, C * H * W)."""
    source, result = shapes[node.all_input_nodes[0]], shapes[node]
    if len(source) < 2 or len(result) < 2 or source[0] != result[0]:
        return False
    if node.target in _MEAN:
        return source[1] == result[1]
    return source[1] == result[1] or (len(result) == 2 and source[1:].numel() == result[1])


@dataclass(frozen=True)
class Step:
    """One node of the graph.

    Attributes
    ----------
    node, op
        The node and how it treats channels.
    inputs, widths
        The tensors that it reads, and their channel counts: 0 of one with fewer pixels than the
        product or sum that it is part of. Nobody looks which of its channels are needed.
    channels
        Channel count of its result.
    keeps_zeros
        Whether a channel that is zero in its only input is zero in its result.
    is_whole
        Of a gate: whether all channels open and close together.
    """

    node: fx.Node
    op: Op
    inputs: tuple[fx.Node, ...]
    widths: tuple[int, ...]
    channels: int
    keeps_zeros: bool
    is_whole: bool = False


def forward_states(steps: list[Step], masks: Mapping[str, Tensor]) -> dict[fx.Node, State]:
    """Return which channels of each tensor are open.

    Parameters
    ----------
    steps
        The graph in order.
    masks
        By gate name: (N, C_out), its decision per channel.
    """
    states: dict[fx.Node, State] = {}
    for step in steps:
        states[step.node] = _forward(step, states, masks)
    return states


def _forward(step: Step, states: dict[fx.Node, State], masks: Mapping[str, Tensor]) -> State:
    inputs = [states[node] for node in step.inputs]
    if step.op is Op.GATE:
        mask = masks[str(step.node.target)]
        return mask[:, :1] if step.is_whole else mask
    if step.op is Op.MUL:
        return both(*inputs)
    if step.op is Op.ADD:
        return either(*inputs)
    if step.op is Op.CAT:
        return _concatenate(step, inputs)
    if step.keeps_zeros:
        state = inputs[0]
        if state is None or state.shape[1] in (1, step.channels):
            return state
        return state.repeat_interleave(step.channels // state.shape[1], 1)
    return None


def _concatenate(step: Step, states: list[State]) -> State:
    known = next((state for state in states if state is not None), None)
    if known is None:
        return None
    parts = zip(states, step.widths, strict=True)
    ones = known.new_ones(len(known), 1)
    return torch.cat([(ones if s is None else s).expand(-1, width) for s, width in parts], 1)


def backward_states(steps: list[Step], open_: dict[fx.Node, State]) -> dict[fx.Node, State]:
    """Return which channels of each tensor somebody needs, given which are open."""
    wanted: dict[fx.Node, list[State]] = {step.node: [] for step in steps}
    needed: dict[fx.Node, State] = {}
    for step in reversed(steps):
        wishes = wanted[step.node]
        needed[step.node] = either(*wishes) if wishes else None
        for i, source in enumerate(step.inputs):
            if source in wanted:
                wanted[source].append(_wish(step, i, needed[step.node], open_))
    return needed


def _wish(step: Step, index: int, needed: State, open_: dict[fx.Node, State]) -> State:
    """Return what one reader needs of its `index`-th input."""
    if step.op in (Op.ZERO_KEEPING, Op.CHANNELWISE, Op.DEPTHWISE):
        if needed is None or needed.shape[1] == 1 or step.widths[0] == step.channels:
            return needed
        return needed.unflatten(1, (step.widths[0], -1)).amax(2)  # a flatten
    if step.op in (Op.MUL, Op.ADD) and step.widths[index] != step.channels:
        return None  # broadcast over channels: all of them read it
    if step.op is Op.MUL:
        return both(needed, open_[step.inputs[1 - index]])
    if step.op is Op.ADD:
        return needed
    if needed is not None and needed.shape[1] == 1 and step.op in (Op.CAT, Op.MIX, Op.GROUPED):
        return needed
    if step.op is Op.CAT and needed is not None:
        start = sum(step.widths[:index])
        return needed[:, start : start + step.widths[index]]
    return None


def both(*states: State) -> State:
    """And: a product; None (all open) is its neutral element."""
    result: State = None
    for state in states:
        if state is not None:
            result = state if result is None else result * state
    return result


def either(*states: State) -> State:
    """Or: 1 - product of (1 - s); anything or None (all open) is None."""
    closed: State = None
    for state in states:
        if state is None:
            return None
        closed = 1 - state if closed is None else closed * (1 - state)
    return None if closed is None else 1 - closed
