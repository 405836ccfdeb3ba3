# SPDX-License-Identifier: Apache-2.0
"""Which channels of a tensor can be non-zero, and which are needed, as terms over gates.

``None`` stands for all channels. A set is otherwise one of `Mask`, `Union`, `Intersection` and
`Concatenation`, each a value that compares by its contents, so that equal sets are found equal.
"""

from dataclasses import dataclass
from functools import reduce
from math import gcd

from tvm.relax import Var


@dataclass(frozen=True)
class Mask:
    """The channels where a gate's multiplier (N, C, 1, 1) is not 0."""

    var: Var
    channels: int
    group_size: int


@dataclass(frozen=True)
class Union:
    """Channels in any of the parts."""

    parts: "frozenset[ChannelSet]"


@dataclass(frozen=True)
class Intersection:
    """Channels in all of the parts."""

    parts: "frozenset[ChannelSet]"


@dataclass(frozen=True)
class Concatenation:
    """The parts' channels one after the other; each part is (set, number of channels)."""

    parts: "tuple[tuple[ChannelSet | None, int], ...]"


ChannelSet = Mask | Union | Intersection | Concatenation


def union(*sets: ChannelSet | None) -> ChannelSet | None:
    """Channels in any of the sets."""
    if not sets or any(item is None for item in sets):
        return None
    parts = frozenset(p for s in sets for p in (s.parts if isinstance(s, Union) else (s,)))
    return next(iter(parts)) if len(parts) == 1 else Union(parts)


def intersection(*sets: ChannelSet | None) -> ChannelSet | None:
    """Channels in all of the sets."""
    known = [item for item in sets if item is not None]
    parts = frozenset(p for s in known for p in (s.parts if isinstance(s, Intersection) else (s,)))
    if not parts:
        return None
    return next(iter(parts)) if len(parts) == 1 else Intersection(parts)


def concatenation(parts: list[tuple[ChannelSet | None, int]]) -> ChannelSet | None:
    """The sets of tensors that are concatenated along the channels."""
    if all(part is None for part, _ in parts):
        return None
    return Concatenation(tuple(parts))


def slice_of(whole: ChannelSet | None, start: int, channels: int) -> ChannelSet | None:
    """The part of a set of a concatenated tensor that belongs to one of its inputs."""
    if isinstance(whole, Concatenation):
        position = 0
        for part, size in whole.parts:
            if (position, size) == (start, channels):
                return part
            position += size
    return None


def is_whole(item: ChannelSet | None) -> bool:
    """Whether one decision opens or closes all channels of the set's tensor."""
    if isinstance(item, Mask):
        return item.group_size == item.channels
    return isinstance(item, Union | Intersection) and all(is_whole(part) for part in item.parts)


def of_width(item: ChannelSet, channels: int) -> ChannelSet:
    """The same decisions over all channels of a tensor of `channels`; the set `is_whole`."""
    if isinstance(item, Mask):
        return Mask(item.var, channels, channels)
    assert isinstance(item, Union | Intersection)
    return type(item)(frozenset(of_width(part, channels) for part in item.parts))


def masks_of(item: ChannelSet | None) -> set[Var]:
    """The multipliers that a set is made of."""
    if item is None:
        return set()
    if isinstance(item, Mask):
        return {item.var}
    parts = [p for p, _ in item.parts] if isinstance(item, Concatenation) else list(item.parts)
    return set().union(*(masks_of(part) for part in parts))


def without(item: ChannelSet | None, unusable: set[Var]) -> ChannelSet | None:
    """A larger set that does not need the masks in `unusable`."""
    if item is None or not masks_of(item) & unusable:
        return item
    if isinstance(item, Mask):
        return None
    if isinstance(item, Concatenation):
        return concatenation([(without(part, unusable), size) for part, size in item.parts])
    parts = [without(part, unusable) for part in item.parts]
    return union(*parts) if isinstance(item, Union) else intersection(*parts)


def granularity(item: ChannelSet) -> int:
    """Neighbouring channels, counted from 0, that are always in the set or out of it together."""
    if isinstance(item, Mask):
        return item.group_size
    if isinstance(item, Concatenation):
        sizes = [size for _, size in item.parts]
        return reduce(
            gcd, sizes + [granularity(part) for part, _ in item.parts if part is not None]
        )
    return reduce(gcd, [granularity(part) for part in item.parts])
