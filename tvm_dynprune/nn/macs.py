# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates (MACs): dense, and those executed for each input, gates included.

A convolution executes ``open_in * open_out * kh * kw * oh * ow`` (divided by its groups), where
open_in are the input channels that are not known zero and open_out the output channels that are
open and needed by somebody (`tvm_dynprune.nn.propagate`). A depthwise one skips zero channels only
if it makes zeros of them: without a bias or batch norm. A linear layer counts likewise. A gate
costs ``open_in * G``: its mean runs before its 1x1 convolution. Other grouped convolutions than
depthwise ones read all of their inputs, transposed ones execute all of their MACs; everything else
costs nothing. Where one decision closes all output channels, nothing that only they need is
executed either.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tvm_dynprune.nn.chains import called_module, trace
from tvm_dynprune.nn.gates import Gate
from tvm_dynprune.nn.propagate import (
    Op,
    State,
    Step,
    backward_states,
    both,
    classify,
    forward_states,
)
from tvm_dynprune.nn.recording import evaluating, recorded_masks, tensor_shapes


@dataclass(frozen=True)
class MacCount:
    """MACs of a batch of N inputs.

    Attributes
    ----------
    dense
        By layer, for one input without gates; gates are not among them.
    executed
        By layer: int64 (N,), for each input; gates are among them as ``gates.<layer>``.
    """

    dense: dict[str, int]
    executed: dict[str, Tensor]

    @property
    def dense_total(self) -> int:
        """MACs of one input without gates."""
        return sum(self.dense.values())

    @property
    def executed_total(self) -> Tensor:
        """int64 (N,), MACs executed for each input."""
        return torch.stack(list(self.executed.values())).sum(0)

    @property
    def mac_cut(self) -> float:
        """1 - executed / dense, the mean over the inputs."""
        return 1 - float(self.executed_total.double().mean()) / self.dense_total


@dataclass(frozen=True)
class _Layer:
    """A node that costs MACs: ``cost`` for each pair of an input and an output channel.

    A gate costs ``out_channels`` for each open input channel, and ``cost`` on top.
    """

    name: str
    step: Step
    in_channels: int
    out_channels: int
    cost: float


@dataclass(frozen=True)
class MacPlan:
    """What MACs a network would execute under given decisions of its gates; see `plan_macs`."""

    steps: list[Step]
    layers: list[_Layer]
    dense: dict[str, int]

    @property
    def dense_total(self) -> int:
        """MACs of one input without gates."""
        return sum(self.dense.values())

    def executed(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the MACs of each layer and input under the gates' decisions.

        Parameters
        ----------
        masks
            By gate name: float (N, C_out), 1 for open, 0 for closed. Numbers between give the
            expected MACs of independent gates, differentiable. float64 counts exactly.

        Returns
        -------
        dict
            By layer: (N,), or (1,) where the gates do not matter.
        """
        device = _device(masks)
        open_ = forward_states(self.steps, masks)
        needed = backward_states(self.steps, open_)
        totals: dict[str, Tensor] = {}
        for layer in self.layers:
            macs = _executed(layer, *_sets(layer.step, open_, needed), device)
            totals[layer.name] = totals[layer.name] + macs if layer.name in totals else macs
        return totals

    def opened(self, masks: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the open shares of each layer's input and output channels; gates left out.

        Parameters
        ----------
        masks
            As for `executed`.

        Returns
        -------
        dict
            By layer: two shares in [0, 1], each (N,), or (1,) where the gates do not matter. A
            depthwise layer has one share, that of the channels it computes, twice.
        """
        device = _device(masks)
        open_ = forward_states(self.steps, masks)
        needed = backward_states(self.steps, open_)
        shares = {}
        for layer in self.layers:
            first, second = _sets(layer.step, open_, needed)
            if layer.step.op is not Op.GATE:
                sizes = layer.in_channels, layer.out_channels
                counts = _count(first, sizes[0], device), _count(second, sizes[1], device)
                shares[layer.name] = (counts[0] / sizes[0], counts[1] / sizes[1])
        return shares


def plan_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> MacPlan:
    """Analyse a network, with or without gates, for images of `input_shape` (C, H, W).

    Raises
    ------
    ModelError
        torch.fx cannot trace the model.
    """
    module = model if isinstance(model, fx.GraphModule) else fx.GraphModule(model, trace(model))
    shapes = tensor_shapes(module, input_shape)
    modules: dict[str, nn.Module] = dict(module.named_modules(remove_duplicate=False))
    steps = [_step(node, modules, shapes) for node in module.graph.nodes]
    layers = [layer for step in steps for layer in _layer(step, modules, shapes)]
    dense: dict[str, int] = {}
    for layer in layers:
        if layer.step.op is not Op.GATE:
            dense[layer.name] = dense.get(layer.name, 0) + _dense(layer)
    return MacPlan(steps, layers, dense)


def count_macs(model: nn.Module, images: Tensor) -> MacCount:
    """Count the MACs that a network executes for each of the images.

    Parameters
    ----------
    model
        A network, with or without gates. It is run once in evaluation mode, and left as it was.
    images
        float32 (N, C, H, W) in [0, 1].

    Raises
    ------
    ModelError
        torch.fx cannot trace the model.
    """
    plan = plan_macs(model, (images.shape[1], images.shape[2], images.shape[3]))
    with evaluating(model), torch.no_grad(), recorded_masks(model) as masks:
        model(images)
    decisions = {name: (mask != 0).double() for name, mask in masks.items()}
    executed = plan.executed(decisions)
    whole = {name: macs.round().long().expand(len(images)) for name, macs in executed.items()}
    return MacCount(plan.dense, whole)


def _step(node: fx.Node, modules: dict[str, nn.Module], shapes: dict[fx.Node, torch.Size]) -> Step:
    op = classify(node, modules, shapes)
    inputs = tuple(node.all_input_nodes)
    widths = tuple(_width(op, shapes, source, node) for source in inputs)
    module = called_module(node, modules)
    keeps_zeros = op is Op.ZERO_KEEPING
    if op is Op.DEPTHWISE and isinstance(module, nn.Conv2d):
        users = [called_module(user, modules) for user in node.users]
        has_norm = any(isinstance(user, nn.BatchNorm2d) for user in users)
        keeps_zeros = module.bias is None and not has_norm
    is_whole = isinstance(module, Gate) and module.groups == 1
    return Step(node, op, inputs, widths, _channels(shapes, node), keeps_zeros, is_whole)


def _width(op: Op, shapes: dict[fx.Node, torch.Size], source: fx.Node, node: fx.Node) -> int:
    is_broadcast = op in (Op.MUL, Op.ADD) and shapes[source][2:] != shapes[node][2:]
    return 0 if is_broadcast else _channels(shapes, source)


def _channels(shapes: dict[fx.Node, torch.Size], node: fx.Node) -> int:
    return shapes[node][1] if node in shapes and len(shapes[node]) > 1 else 1


def _layer(
    step: Step, modules: dict[str, nn.Module], shapes: dict[fx.Node, torch.Size]
) -> Iterator[_Layer]:
    module, name = called_module(step.node, modules), str(step.node.target)
    if isinstance(module, Gate):
        for_each, on_top = module.macs(shapes[step.inputs[0]][2:].numel())
        sizes = (module.in_channels, for_each, float(on_top))
        yield _Layer(name, step, *sizes)
    elif isinstance(module, nn.Conv2d):
        pixels = shapes[step.node][2:].numel()
        kernel = module.kernel_size[0] * module.kernel_size[1]
        cost = pixels * kernel / (1 if step.op is Op.DEPTHWISE else module.groups)
        sizes = (module.in_channels, module.out_channels, cost)
        yield _Layer(name, step, *sizes)
    elif isinstance(module, nn.ConvTranspose2d):
        pixels = shapes[step.inputs[0]][2:].numel()
        cost = pixels * module.kernel_size[0] * module.kernel_size[1] / module.groups
        sizes = (module.in_channels, module.out_channels, cost)
        yield _Layer(name, step, *sizes)
    elif isinstance(module, nn.Linear):
        rows = shapes[step.node][1:-1].numel()
        sizes = (module.in_features, module.out_features, float(rows))
        yield _Layer(name, step, *sizes)


def _dense(layer: _Layer) -> int:
    pairs = layer.in_channels * (1 if layer.step.op is Op.DEPTHWISE else layer.out_channels)
    return round(pairs * layer.cost)


def _device(masks: Mapping[str, Tensor]) -> torch.device | None:
    return next((mask.device for mask in masks.values()), None)


def _sets(
    step: Step, open_: Mapping[fx.Node, State], needed: Mapping[fx.Node, State]
) -> tuple[State, State]:
    """The input and output channels that a layer computes with; of a depthwise one they are one."""
    first, second = open_[step.inputs[0]], needed[step.node]
    if step.op is Op.DEPTHWISE:
        second = both(first, second) if step.keeps_zeros else second
        return second, second
    if step.op is Op.OPAQUE:
        return None, None
    return None if step.op is Op.GROUPED else first, second


def _executed(layer: _Layer, first: State, second: State, device: torch.device | None) -> Tensor:
    """MACs (N,) of one layer, or (1,) if nothing about it depends on a gate."""
    inputs = _count(first, layer.in_channels, device)
    if layer.step.op is Op.DEPTHWISE:
        return inputs * layer.cost
    if layer.step.op is Op.GATE:
        return inputs * layer.out_channels + layer.cost
    return inputs * _count(second, layer.out_channels, device) * layer.cost


def _count(state: State, channels: int, device: torch.device | None) -> Tensor:
    if state is None:
        return torch.full((1,), channels, dtype=torch.float64, device=device)
    return state.sum(1) * (channels // state.shape[1])
