# SPDX-License-Identifier: Apache-2.0
"""Weights beside an artifact's library: a file that is mapped, so that they are in memory once.

Tensors lie in it one after the other, each at a multiple of 64 bytes, which is how TVM's kernels
want them; the manifest has their places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ALIGNMENT = 64  # bytes
_HEADER = b"tvm_dynprune weights"  # a file is never empty: nobody can map an empty one


@dataclass(frozen=True)
class WeightPlace:
    """Where a tensor lies in the file of weights."""

    dtype: str
    offset_bytes: int
    shape: list[int]


def write_weights(path: Path, arrays: Sequence[np.ndarray]) -> list[WeightPlace]:
    """Write a file of weights; returns their places."""
    places = []
    with path.open("wb") as stream:
        stream.write(_HEADER)
        for array in arrays:
            stream.write(bytes(-stream.tell() % ALIGNMENT))
            places.append(WeightPlace(str(array.dtype), stream.tell(), list(array.shape)))
            stream.write(np.ascontiguousarray(array).data)
    return places


def map_weights(path: Path, places: Sequence[WeightPlace]) -> list[np.ndarray]:
    """Map a file of weights; returns the tensors in it."""
    data = np.memmap(path, np.uint8, mode="c")  # what DLPack passes on must be writable
    return [_part(data, place) for place in places]


def layout_of(places: Sequence[WeightPlace]) -> str:
    """The places as text, a line a tensor: what a device's server reads."""
    lines = [" ".join(map(str, [p.dtype, p.offset_bytes, *p.shape])) for p in places]
    return "\n".join(lines)


def _part(data: np.ndarray, place: WeightPlace) -> np.ndarray:
    dtype = np.dtype(place.dtype)
    size = int(np.prod(place.shape)) * dtype.itemsize
    return data[place.offset_bytes :][:size].view(dtype).reshape(place.shape)
