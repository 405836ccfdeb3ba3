# SPDX-License-Identifier: Apache-2.0
"""Where in one piece of memory tensors lie that are not all needed at the same time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A tensor's bytes, and the first and the last step at which they are needed."""

    size: int
    first: int
    last: int

    def overlaps(self, other: "Interval") -> bool:
        return self.first <= other.last and other.first <= self.last


def plan_memory(intervals: list[Interval], alignment: int) -> tuple[list[int], int]:
    """Offsets of tensors, and the size of the memory that holds them all.

    The largest first, each at the lowest offset that is free for as long as it is needed: "greedy
    by size" of Pisarchyk and Lee, arXiv 2001.03288, section 5.2.
    """
    offsets: dict[int, int] = {}
    for i in sorted(range(len(intervals)), key=lambda i: (-intervals[i].size, i)):
        taken = sorted(
            (offset, offset + intervals[j].size)
            for j, offset in offsets.items()
            if intervals[j].overlaps(intervals[i])
        )
        place = 0
        for start, end in taken:
            if place + intervals[i].size <= start:
                break
            place = max(place, -(-end // alignment) * alignment)
        offsets[i] = place
    size = max((offsets[i] + interval.size for i, interval in enumerate(intervals)), default=0)
    return [offsets[i] for i in range(len(intervals))], size
