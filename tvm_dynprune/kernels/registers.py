# SPDX-License-Identifier: Apache-2.0
"""Vectors that stay in registers while a kernel computes with them."""

import numpy as np
from tvm.script.ir_builder import tirx as T


def registers(*shape: int, lanes: int) -> np.ndarray:
    """Emit the allocation of an array of vectors, a float32 buffer (lanes,) each.

    One by one, as TVM puts only what is below 1 KiB onto the stack, from where LLVM takes it into
    registers. All else comes from a workspace: a call, and memory that every turn of a loop writes.
    """
    vectors = np.empty(shape, object)
    for index in np.ndindex(*shape):
        vectors[index] = T.alloc_buffer((lanes,), "float32")
    return vectors
