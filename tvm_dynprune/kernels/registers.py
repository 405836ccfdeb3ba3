# SPDX-License-Identifier: Apache-2.0
"""Vectors that stay in registers while a kernel computes with them."""

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Buffer


def registers(*shape: int, lanes: int) -> np.ndarray:
    """Emit the allocation of an array of vectors, a float32 buffer (lanes,) each.

    One by one, as TVM puts only what is below 1 KiB onto the stack, from where LLVM takes it into
    registers. All else comes from a workspace: a call, and memory that every turn of a loop writes.
    """
    vectors = np.empty(shape, object)
    for index in np.ndindex(*shape):
        vectors[index] = T.alloc_buffer((lanes,), "float32")
    return vectors


def zero(vectors: np.ndarray) -> None:
    """Emit zeros."""
    for one in vectors.flat:
        with T.vectorized(0, int(one.shape[0])) as v:
            T.buffer_store(one, T.float32(0), [v])


def add(vectors: np.ndarray, others: np.ndarray) -> None:
    """Emit the addition of `others` to as many vectors."""
    for one, other in zip(vectors.flat, others.flat, strict=True):
        with T.vectorized(0, int(one.shape[0])) as v:
            T.buffer_store(one, one[v] + other[v], [v])


def repeated_lanes(buffer: Buffer, at: tuple, count: int, lanes: int) -> list:
    """Each of `count` elements from `at` on as a vector of `lanes` times itself; one load."""
    vector = buffer[(*at, T.Ramp(0, 1, count))]
    return [tirx.Shuffle([vector], [element] * lanes) for element in range(count)]
