# SPDX-License-Identifier: Apache-2.0
"""What part each convolution plays in a network: first, last, expansion, projection."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx, nn
from torch.nn import functional as F

from tvm_dynprune.nn.chains import MUL, Chain, called_module, find_chains, is_depthwise

_CONSUMERS = (F.linear, F.conv2d, torch.conv2d, torch.matmul)


@dataclass(frozen=True)
class Roles:
    """A network's convolutions and the parts they play.

    Attributes
    ----------
    chains
        All convolutions in graph order.
    first
        Calls of convolutions that no other convolution comes before.
    last
        Calls of convolutions that no convolution or linear layer comes after.
    pooled
        Calls of convolutions that read one pixel: means of whole planes, or what follows them.
    """

    chains: list[Chain]
    first: set[fx.Node]
    last: set[fx.Node]
    pooled: set[fx.Node]

    @cached_property
    def _expansions(self) -> dict[fx.Node, Chain]:
        """Depthwise call to the 1x1 convolution that makes its input, for nobody else."""
        by_end = {chain.end: chain for chain in self.chains}
        found: dict[fx.Node, Chain] = {}
        for chain in self.chains:
            before = by_end.get(chain.input)
            if before is None or not is_depthwise(chain.conv) or chain.calls > 1:
                continue
            is_private = len(before.end.users) == 1 and before.calls == 1
            if _is_pointwise(before.conv) and is_private and before.node not in self.first:
                found[chain.node] = before
        return found

    @cached_property
    def projections(self) -> set[fx.Node]:
        """Calls of 1x1 convolutions after a depthwise one, without an activation of their own.

        What a squeeze and excitation scales in between still comes from the depthwise one.
        """
        ends = {chain.end for chain in self.chains if is_depthwise(chain.conv)}
        scaled = {user for end in ends for user in end.users if user.target in MUL}
        return {
            chain.node
            for chain in self.chains
            if chain.input in ends | scaled
            and _is_pointwise(chain.conv)
            and not chain.has_activation
        }

    def expansion_of(self, depthwise: Chain) -> Chain | None:
        """Return the 1x1 convolution before a depthwise one that the same gate can close."""
        return self._expansions.get(depthwise.node)

    def depthwise_after(self, expansion: Chain) -> Chain | None:
        """Return the depthwise convolution whose gate closes this 1x1 convolution too."""
        chains = (c for c in self.chains if self._expansions.get(c.node) is expansion)
        return next(chains, None)


def find_roles(graph: fx.Graph, modules: dict[str, nn.Module]) -> Roles:
    """Analyse a traced network that has no gates yet."""
    chains = find_chains(graph, modules)
    calls = {chain.node for chain in chains}
    after: set[fx.Node] = set()
    for node in graph.nodes:
        if any(source in calls or source in after for source in node.all_input_nodes):
            after.add(node)
    before: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if any(_consumes(user, modules) or user in before for user in node.users):
            before.add(node)
    pixels: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if _is_global_pool(node, modules) or (sources and pixels.issuperset(sources)):
            pixels.add(node)
    pooled = {chain.node for chain in chains if chain.input in pixels}
    roles = Roles(chains, calls - after, calls - before, pooled)
    # Found now: inserting gates changes who reads what.
    _ = roles._expansions, roles.projections
    return roles


def _is_global_pool(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node takes the mean or maximum of each whole plane."""
    module = called_module(node, modules)
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return module.output_size in (1, (1, 1))
    arguments = [*node.args, *node.kwargs.values()]
    if node.target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        return any(argument in (1, (1, 1), [1, 1]) for argument in arguments)
    axes = ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2])
    return node.target in (torch.mean, "mean") and any(axis in axes for axis in arguments)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.groups == 1


def _consumes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    module = called_module(node, modules)
    return isinstance(module, nn.Conv2d | nn.Linear) or node.target in _CONSUMERS
