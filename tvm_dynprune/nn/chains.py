# SPDX-License-Identifier: Apache-2.0
"""Find, in a traced network, the convolutions and where each one's mask would stand."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from tvm_dynprune.errors import ModelError
from tvm_dynprune.nn.gates import Gate
from tvm_dynprune.nn.networks.layers import Normalise

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
)
ACTIVATION_FUNCTIONS: tuple[Callable[..., torch.Tensor] | str, ...] = (
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.silu,
    F.hardswish,
    F.hardtanh,
    torch.clamp,
    "clamp",
    "clamp_",
    "relu",
    "relu_",
    "sigmoid",
    "tanh",
)

MUL = (torch.mul, operator.mul, operator.imul, "mul", "mul_")


@dataclass(frozen=True)
class Chain:
    """A convolution with the batch norm and the activation that follow it.

    Attributes
    ----------
    name
        Module name of the convolution.
    conv
        The module.
    node
        Its call in the graph.
    end
        The node whose result is masked: batch norm and activation lie before it.
    has_activation
        Whether there is an activation between `node` and `end`.
    calls
        How often the module is called in the graph.
    """

    name: str
    conv: nn.Conv2d
    node: fx.Node
    end: fx.Node
    has_activation: bool
    calls: int

    @property
    def input(self) -> fx.Node:
        """The convolution's input."""
        node = self.node.args[0] if self.node.args else self.node.kwargs["input"]
        assert isinstance(node, fx.Node)
        return node


class Tracer(fx.Tracer):
    """Trace with the gates and the normalisation left whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module becomes one node."""
        if isinstance(m, Gate | Normalise):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """Trace a model with torch.fx.

    Raises
    ------
    ModelError
        torch.fx cannot follow the model's ``forward``.
    """
    try:
        return Tracer().trace(model)
    except Exception as error:  # torch.fx raises whatever the traced code raises on a Proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{type(model).__name__}: torch.fx cannot trace its forward ({reason}): "
            "replace branches and loops that depend on values"
        ) from error


def called_module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """Return the module that a node calls; None for any other node."""
    return modules[str(node.target)] if node.op == "call_module" else None


def find_chains(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[Chain]:
    """Return the chain of every `nn.Conv2d` call in graph order."""
    calls = [n for n in graph.nodes if isinstance(called_module(n, modules), nn.Conv2d)]
    targets = [str(node.target) for node in calls]
    chains: list[Chain] = []
    for node, name in zip(calls, targets, strict=True):
        conv = modules[name]
        assert isinstance(conv, nn.Conv2d)
        end, has_activation = _end_of_chain(node, modules)
        chains.append(Chain(name, conv, node, end, has_activation, targets.count(name)))
    return chains


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each output channel reads exactly its own input channel."""
    return 1 < conv.groups == conv.in_channels == conv.out_channels


def is_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is an elementwise activation function."""
    if node.op == "call_module":
        return isinstance(called_module(node, modules), ACTIVATIONS)
    return node.target in ACTIVATION_FUNCTIONS


def _end_of_chain(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node, bool]:
    """Follow batch norm and activation as long as nobody else reads what lies between.

    A result with several readers ends the chain: masked there, all its readers see the mask.
    """
    end = node
    user = _only_user(end)
    if user is not None and isinstance(called_module(user, modules), nn.BatchNorm2d):
        end = user
        user = _only_user(end)
    if user is not None and is_activation(user, modules):
        return user, True
    return end, False


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
