# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates of one run, from the gates' decisions.

The terms that describe open sets are explained in `passes.layer_macs`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def dense_macs(layers: Sequence[dict[str, Any]]) -> int:
    """Multiply-accumulates with everything open."""
    return sum(_size(layer) * layer["macs_per_pair"] for layer in layers)


def executed_macs(
    layers: Sequence[dict[str, Any]], open_channels: Sequence[np.ndarray]
) -> np.ndarray:
    """Multiply-accumulates that each input executed, gates included.

    Parameters
    ----------
    layers
        A manifest's `layers`.
    open_channels
        For each gate, in order, (N, C) bool.

    Returns
    -------
    np.ndarray
        (N,) int64.
    """
    batch = open_channels[0].shape[0] if open_channels else 1
    total = np.zeros(batch, np.int64)
    for layer in layers:
        total += layer_pairs(layer, open_channels, batch) * layer["macs_per_pair"]
    return total


def layer_pairs(
    layer: dict[str, Any], open_channels: Sequence[np.ndarray], batch: int
) -> np.ndarray:
    """(N,) int64: open_in * open_out of one layer for each input."""
    sizes = ((layer["open_in"], layer["channels_in"]), (layer["open_out"], layer["channels_out"]))
    counts = [_count(term, channels, open_channels, batch) for term, channels in sizes]
    return counts[0] * counts[1]


def _size(layer: dict[str, Any]) -> int:
    return layer["channels_in"] * layer["channels_out"]


def _count(
    term: dict[str, Any] | None, channels: int, open_channels: Sequence[np.ndarray], batch: int
) -> np.ndarray:
    if term is None:
        return np.full(batch, channels, np.int64)
    return open_set(term, open_channels, batch).sum(axis=1, dtype=np.int64)


def open_set(term: dict[str, Any], open_channels: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """The set (N, C) bool that a term stands for; see `executed_macs`."""
    if "gate" in term:
        decided = open_channels[term["gate"]]
        return np.repeat(decided[:, :1], term["channels"], 1) if "channels" in term else decided
    if "concat" in term:
        parts = [
            np.ones((batch, size), bool) if part is None else open_set(part, open_channels, batch)
            for part, size in term["concat"]
        ]
        return np.concatenate(parts, axis=1)
    combine, parts = (np.any, term["any"]) if "any" in term else (np.all, term["all"])
    return combine([open_set(part, open_channels, batch) for part in parts], axis=0)
