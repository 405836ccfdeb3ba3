# SPDX-License-Identifier: Apache-2.0
"""insert_gates: put a gate before each convolution of a CNN, and say what was done and why."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import fx, nn

from tvm_dynprune.errors import GroupSizeError, ModelError
from tvm_dynprune.nn.blocks import ResidualBlock, find_blocks
from tvm_dynprune.nn.chains import Chain, trace
from tvm_dynprune.nn.gate_kinds import BLOCK, GATES
from tvm_dynprune.nn.roles import Roles, find_roles

_REPORT = "tvm_dynprune.gate_report"


@dataclass(frozen=True)
class LayerReport:
    """What `insert_gates` did with one convolution.

    Attributes
    ----------
    layer
        Module name of the convolution.
    gated
        Whether it got a gate of its own.
    groups
        Number of channel groups of its gate; 0 without one.
    reason
        Why it was left alone, or what its gate reads or closes.
    """

    layer: str
    gated: bool
    groups: int
    reason: str


@dataclass(frozen=True)
class GateReport:
    """One `LayerReport` per convolution in the network's order; prints as a table."""

    layers: tuple[LayerReport, ...]

    @property
    def gated(self) -> tuple[str, ...]:
        """Names of the gated convolutions."""
        return tuple(layer.layer for layer in self.layers if layer.gated)

    def __str__(self) -> str:
        """Return one line per convolution, and a count."""
        width = max((len(layer.layer) for layer in self.layers), default=0)
        lines = [
            f"{row.layer:<{width}}  {f'{row.groups} groups' if row.gated else 'not gated':<10}  "
            f"{row.reason}".rstrip()
            for row in self.layers
        ]
        return "\n".join([*lines, f"{len(self.gated)} of {len(self.layers)} convolutions gated"])


class GatedModel(fx.GraphModule):
    """A network with gates: a `torch.fx.GraphModule` that knows its `GateReport`."""

    @property
    def report(self) -> GateReport:
        """What was gated and what not."""
        return cast("GateReport", self.meta[_REPORT])


@dataclass(frozen=True)
class _Selection:
    """Which convolutions the caller wants gated."""

    include: Sequence[str] | None
    exclude: Sequence[str] | None
    first: bool

    def refuses(self, name: str) -> str | None:
        """Return why the patterns leave a layer alone; None if they do not."""
        if self.exclude and any(fnmatchcase(name, pattern) for pattern in self.exclude):
            return "excluded by pattern"
        if self.include is not None and not any(fnmatchcase(name, p) for p in self.include):
            return "matches no include pattern"
        return None

    def names(self, name: str) -> bool:
        """Whether the layer is asked for by its own name, without wildcards."""
        return self.include is not None and name in self.include


def insert_gates(
    model: nn.Module,
    gate: str = "lkam",
    group_size: int = 8,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    first: bool = False,
) -> GatedModel:
    """Put a gate before each convolution of a network.

    A chain of convolution, batch norm and activation (the last two may be missing) becomes
    ``mul(chain(x), gate(x))``. In a residual block's last convolution the mask stands after batch
    norm, before the addition. An inverted residual gets one gate: it reads the block's input and
    its mask stands after the depthwise convolution's activation, since a depthwise convolution with
    batch norm makes a constant, not 0, of a closed channel; expansion and projection then need no
    gate of their own.

    Gates of kind "block" stand before residual blocks instead: one reads a block's input, and its
    mask closes the last convolution before the addition, so that nothing of the block is needed.

    Parameters
    ----------
    model
        A network that torch.fx can trace. It is not changed; weights are copied.
    gate
        Kind of gate, a key of `GATES`.
    group_size
        Neighbouring output channels that open and close together; for "block" it is all of them.
    include
        Patterns (``fnmatch``) of layer names; None includes every layer. A layer given by its own
        name is gated even where it would be left alone by default.
    exclude
        Patterns of layer names to leave alone; stronger than `include`.
    first
        Gate the first convolution too.

    Returns
    -------
    GatedModel
        Parameters have the names and values they had; gates are ``gates.<layer>`` with the dots of
        the layer's name replaced by underscores. Gates start open, so outputs are unchanged.
        Parameters that ``forward`` never uses are dropped.
        ``report`` says what was gated and why the rest was not: left alone by default are the
        first convolution, those after a global pooling (squeeze and excitation), a convolution that
        no other convolution or linear layer follows (a classifier), and ones that are called twice.

    Raises
    ------
    GroupSizeError
        `group_size` does not divide the channels of a layer that would be gated.
    ModelError
        torch.fx cannot trace the model, it has gates already, `gate` is no known kind, or it is
        "block" and the network has no residual block.
    """
    if gate not in GATES:
        raise ModelError(f"no gate {gate!r}: choose one of {', '.join(GATES)}")
    if group_size < 1:
        raise GroupSizeError(f"group size {group_size}: it must be at least 1")
    if "gates" in dict(model.named_children()):
        raise ModelError(f"{type(model).__name__} has gates already: pass the network without them")
    model = copy.deepcopy(model)
    gated = GatedModel(model, trace(model))
    _restore_buffers(model, gated)
    selection = _Selection(include, exclude, first)
    modules: dict[str, nn.Module] = dict(gated.named_modules(remove_duplicate=False))
    roles = find_roles(gated.graph, modules)
    if gate == BLOCK:
        blocks = find_blocks(gated.graph, modules)
        if not blocks:
            raise ModelError(f"{type(model).__name__} has no residual block: choose another gate")
        rows = _gate_blocks(gated, roles, blocks, selection)
    else:
        rows = [_gate_layer(gated, roles, c, selection, gate, group_size) for c in roles.chains]
    gated.graph.lint()
    gated.recompile()
    gated.meta[_REPORT] = GateReport(tuple(rows))
    return gated


def _restore_buffers(model: nn.Module, gated: nn.Module) -> None:
    """Make the buffers non-persistent again that were: torch.fx registers all as persistent."""
    saved = model.state_dict().keys()
    for name, buffer in dict(gated.named_buffers()).items():
        if name not in saved:
            owner, _, leaf = name.rpartition(".")
            gated.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)


def _gate_blocks(
    gated: GatedModel, roles: Roles, blocks: list[ResidualBlock], selection: _Selection
) -> list[LayerReport]:
    """Gate every residual block in place; return a row per convolution."""
    rows = {c.node: LayerReport(c.name, False, 0, "in no residual block") for c in roles.chains}
    for block in blocks:
        last, others = block.last, [chain.name for chain in block.chains[:-1]]
        if (refused := selection.refuses(last.name)) is not None:
            rows[last.node] = LayerReport(last.name, False, 0, refused)
            continue
        channels = last.conv.out_channels
        gate = GATES[BLOCK](block.chains[0].conv.in_channels, channels, channels)
        gate.train(gated.training).to(last.conv.weight.device)
        _insert(gated, _gate_name(gated, last.name), gate, block.input, block.chains[0].node, last)
        reason = f"closes {', '.join(others)} too" if others else ""
        rows[last.node] = LayerReport(last.name, True, 1, reason)
        for chain in block.chains[:-1]:
            rows[chain.node] = LayerReport(
                chain.name, False, 0, f"the gate of {last.name} closes it"
            )
    return list(rows.values())


def _gate_layer(
    gated: GatedModel, roles: Roles, chain: Chain, selection: _Selection, kind: str, group_size: int
) -> LayerReport:
    """Gate one convolution in place, or say why not."""
    reason = _refusal(chain, roles, selection)
    if reason is not None:
        return LayerReport(chain.name, False, 0, reason)
    channels = chain.conv.out_channels
    if channels % group_size:
        raise GroupSizeError(
            f"{chain.name}: group size {group_size} does not divide its {channels} channels: "
            f"choose a divisor of {channels}, or exclude the layer"
        )
    expansion = roles.expansion_of(chain)
    reader = chain if expansion is None else expansion
    gate = GATES[kind](reader.conv.in_channels, channels, group_size)
    gate.train(gated.training).to(chain.conv.weight.device)
    _insert(gated, _gate_name(gated, chain.name), gate, reader.input, reader.node, chain)
    where = "" if expansion is None else f"read from the input of {expansion.name}"
    return LayerReport(chain.name, True, channels // group_size, where)


def _refusal(chain: Chain, roles: Roles, selection: _Selection) -> str | None:
    """Return why a convolution gets no gate of its own; None if it gets one."""
    if (refused := selection.refuses(chain.name)) is not None:
        return refused
    if chain.calls > 1:
        return f"called {chain.calls} times: one gate cannot serve several inputs"
    if selection.names(chain.name):
        return None
    if chain.node in roles.pooled:
        return "reads one pixel: nothing to skip"
    if chain.node in roles.first and not selection.first:
        return "first convolution"
    if chain.node in roles.last:
        return "no convolution or linear layer follows: classifier"
    filter_ = roles.depthwise_after(chain)
    if filter_ is not None and selection.refuses(filter_.name) is None:
        return f"expansion: the gate of {filter_.name} closes it"
    if chain.node in roles.projections:
        return "linear projection"
    return None


def _gate_name(gated: GatedModel, layer: str) -> str:
    name = f"gates.{layer.replace('.', '_')}"
    while any(existing == name for existing, _ in gated.named_modules()):
        name += "_"  # layers a.b_c and a_b.c
    return name


def _insert(
    gated: GatedModel, name: str, gate: nn.Module, source: fx.Node, before: fx.Node, masked: Chain
) -> None:
    """Let a gate that reads `source`, called before a node, mask a chain's result."""
    gated.add_submodule(name, gate)
    # Before the convolution, since an in-place activation may change its input later on.
    with gated.graph.inserting_before(before):
        mask = gated.graph.call_module(name, (source,))
    with gated.graph.inserting_after(masked.end):
        product = gated.graph.call_function(torch.mul, (masked.end, mask))
    masked.end.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)
