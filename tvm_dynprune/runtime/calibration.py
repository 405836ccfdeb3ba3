# SPDX-License-Identifier: Apache-2.0
"""Calibration: what gates left open on some images, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_dynprune.runtime.macs import layer_pairs, open_set


@dataclass(frozen=True)
class Calibration:
    """A manifest's `layers`, and for each gate the open channels (N, C) bool of N images."""

    layers: Sequence[dict[str, Any]]
    open_channels: Sequence[np.ndarray]
    images: int

    def open_products(self) -> dict[str, float]:
        """Layer → mean of open_in * open_out, as a fraction of all pairs of channels."""
        products = {}
        for layer in self.layers:
            pairs = layer_pairs(layer, self.open_channels, self.images)
            products[layer["layer"]] = float(
                pairs.mean() / (layer["channels_in"] * layer["channels_out"])
            )
        return products

    def open_sets(self, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Open input and output channels of a layer, (N, C) bool each; None for all."""
        layer = next(layer for layer in self.layers if layer["layer"] == name)
        terms = (layer["open_in"], layer["open_out"])
        return tuple(
            None if term is None else open_set(term, self.open_channels, self.images)
            for term in terms
        )  # pyright: ignore[reportReturnType]
