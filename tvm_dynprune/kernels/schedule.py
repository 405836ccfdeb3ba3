# SPDX-License-Identifier: Apache-2.0
"""Schedule: how a convolution kernel computes what its `Conv2d` says; what tuning decides."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Schedule:
    """The decisions for one convolution; those of the other algorithm mean nothing.

    Attributes
    ----------
    algorithm
        "direct", "winograd_2" or "winograd_4"; "winograd_strided" becomes "winograd_4" in
        `conv2d_over_squares`.
    quick_weights
        Nothing has to be done to fetch weights quickly: they stay in the caches from one input to
        the next. Without it direct kernels prefetch, and Winograd's transform weights on the way
        where there are few tiles.
    tile
        Direct: height and width, in pixels, of the accumulators that stay in registers; None for
        what `tiling.tile_size` says.
    sums
        Winograd: accumulators that stay in registers, at most; None for all that there are.
    strip_tiles
        Winograd: tiles whose products are held at a time, before they are transformed back.
    channels_at_once
        Winograd: input channels whose weights are transformed together, on the way.
    """

    algorithm: str = "direct"
    quick_weights: bool = False
    tile: tuple[int, int] | None = None
    sums: int | None = None
    strip_tiles: int = 64
    channels_at_once: int = 32

    def to_json(self) -> str:
        """One line, without what is left at its default."""
        default = asdict(Schedule())
        return json.dumps({k: v for k, v in asdict(self).items() if v != default[k]})

    @classmethod
    def from_json(cls, text: str) -> "Schedule":
        """What `to_json` wrote.

        Raises
        ------
        TypeError
            It names a decision that there is not.
        """
        values = json.loads(text)
        if values.get("tile") is not None:
            values["tile"] = tuple(values["tile"])
        return cls(**values)
