# SPDX-License-Identifier: Apache-2.0
"""TuningTask: one kernel of a network, and the open lists that it meets there."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import spec_of, workload_of

REPRESENTATIVES = 5


@dataclass(frozen=True)
class OpenLists:
    """What gates left open for one input, and which share of the inputs it stands for.

    `open_in` and `open_out` are the open channels, ascending; None where the kernel walks them all.
    """

    share: float
    open_in: list[int] | None
    open_out: list[int] | None

    def to_runs(self) -> dict[str, Any]:
        """For JSON: lists as [first, one past the last] of neighbouring channels."""
        return {
            "share": self.share,
            "open_in": None if self.open_in is None else _runs(self.open_in),
            "open_out": None if self.open_out is None else _runs(self.open_out),
        }

    @classmethod
    def from_runs(cls, fields: dict[str, Any]) -> "OpenLists":
        """What `to_runs` returned."""
        sides = [
            None if runs is None else [c for first, end in runs for c in range(first, end)]
            for runs in (fields["open_in"], fields["open_out"])
        ]
        return cls(fields["share"], *sides)


def _runs(channels: list[int]) -> list[tuple[int, int]]:
    """Neighbours put together."""
    edges = np.flatnonzero(np.diff([-2, *channels, np.iinfo(int).max]) != 1)
    pairs = zip(edges[:-1], edges[1:] - 1, strict=True)
    return [(channels[first], channels[last] + 1) for first, last in pairs]


@dataclass(frozen=True)
class TuningTask:
    """A kernel to tune; what is minimised is its expected time over `inputs`.

    Attributes
    ----------
    spec
        What it computes; its schedule is the compiler's own choice, which tuning has to beat.
    layers
        Where the network runs it, once per input each.
    inputs
        The open lists, whose shares add up to 1.
    weights_cached
        Whether its weights stay in the last-level cache from one input to the next.
    """

    spec: Conv2d
    layers: tuple[str, ...]
    inputs: tuple[OpenLists, ...]
    weights_cached: bool

    @property
    def macs(self) -> float:
        """Expected multiply-accumulates of one run."""
        x, y, (kh, kw) = self.spec.x, self.spec.y, self.spec.kernel
        sizes = ((x.channels, "open_in"), (y.channels, "open_out"))
        pairs = 0.0
        for lists in self.inputs:
            counts = [size if (o := getattr(lists, n)) is None else len(o) for size, n in sizes]
            pairs += lists.share * counts[0] * counts[1]
        return pairs * y.height * y.width * kh * kw * y.batch

    @property
    def open_fraction(self) -> float:
        """Expected share of the pairs of channels that are open."""
        x, y, (kh, kw) = self.spec.x, self.spec.y, self.spec.kernel
        pairs = x.channels * y.channels
        return self.macs / (pairs * y.height * y.width * kh * kw * y.batch)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {
                "workload": workload_of(self.spec),
                "schedule": self.spec.schedule.to_json(),
                "layers": list(self.layers),
                "inputs": [lists.to_runs() for lists in self.inputs],
                "weights_cached": self.weights_cached,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "TuningTask":
        """What `to_json` wrote.

        Raises
        ------
        TypeError, KeyError
            It is of another version.
        """
        fields = json.loads(text)
        spec = spec_of(fields["workload"], Schedule.from_json(fields["schedule"]))
        inputs = tuple(OpenLists.from_runs(lists) for lists in fields["inputs"])
        return cls(spec, tuple(fields["layers"]), inputs, bool(fields["weights_cached"]))


def representatives(
    spec: Conv2d, sets: Sequence[tuple[np.ndarray | None, np.ndarray | None]]
) -> tuple[OpenLists, ...]:
    """A few inputs that stand for all.

    Inputs are ordered by open_in * open_out and cut into equal parts; the middle one of each part
    stands for it.

    Parameters
    ----------
    spec
        The kernel.
    sets
        For each layer that runs it, open input and output channels, (N, C) bool over calibration
        images; None for all.
    """
    by_in, by_out = spec.open_in, spec.visit in ("blocks", "gather")
    if not (by_in or by_out):
        return (OpenLists(1.0, None, None),)
    found = []
    for masks in sets:
        images = max((len(mask) for mask in masks if mask is not None), default=1)
        for i in range(images):
            sides = zip((by_in, by_out), masks, (spec.x.channels, spec.y.channels), strict=True)
            found.append(tuple(_listed(listed, mask, i, size) for listed, mask, size in sides))
    found.sort(key=lambda lists: np.prod([1 if s is None else len(s) for s in lists]))
    parts = [part for part in np.array_split(np.arange(len(found)), REPRESENTATIVES) if len(part)]
    return tuple(OpenLists(len(p) / len(found), *found[p[len(p) // 2]]) for p in parts)


def _listed(listed: bool, mask: np.ndarray | None, image: int, size: int) -> list[int] | None:
    if not listed:
        return None
    return list(range(size)) if mask is None else np.flatnonzero(mask[image]).tolist()
