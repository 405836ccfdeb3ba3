# SPDX-License-Identifier: Apache-2.0
"""Residual blocks of a traced network: what a gate of kind "block" can skip."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from tvm_dynprune.nn.chains import Chain, find_chains
from tvm_dynprune.nn.propagate import ADD


@dataclass(frozen=True)
class ResidualBlock:
    """``add(residual(x), shortcut(x))``; more convolutions are in the residual than beside it.

    Attributes
    ----------
    input
        The tensor x that both sides are computed from.
    chains
        The residual's convolutions in graph order; the last one's end is what is added.
    """

    input: fx.Node
    chains: tuple[Chain, ...]

    @property
    def last(self) -> Chain:
        """The convolution that a mask closes the block after."""
        return self.chains[-1]


def find_blocks(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> list[ResidualBlock]:
    """Return a network's residual blocks in graph order.

    Left out is an addition of which neither side ends in a convolution with its batch norm and
    activation, both sides have as many convolutions, or the residual is read from outside.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    chains = find_chains(graph, dict(modules))
    blocks = []
    for node in graph.nodes:
        sides = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if node.target in ADD and len(sides) == 2:
            block = _block(sides, node, chains, order)
            if block is not None:
                blocks.append(block)
    return blocks


def _block(
    sides: list[fx.Node], addition: fx.Node, chains: list[Chain], order: Mapping[fx.Node, int]
) -> ResidualBlock | None:
    before = [_ancestors(side) for side in sides]
    common = before[0] & before[1]
    if not common:
        return None
    source = max(common, key=order.__getitem__)
    own = [side - _ancestors(source) for side in before]
    inside = [tuple(chain for chain in chains if chain.node in side) for side in own]
    if len(inside[0]) == len(inside[1]):
        return None
    longer = 0 if len(inside[0]) > len(inside[1]) else 1
    ends_in_chain = inside[longer][-1].end is sides[longer]
    is_private = all(
        user in own[longer] or user is addition for n in own[longer] for user in n.users
    )
    return ResidualBlock(source, inside[longer]) if ends_in_chain and is_private else None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and everything that it is computed from."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            stack.extend(current.all_input_nodes)
    return found
