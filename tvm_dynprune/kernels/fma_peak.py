# SPDX-License-Identifier: Apache-2.0
"""As many multiply-adds as one core can do: the yardstick of every other kernel."""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder, tirx as T

from tvm_dynprune.kernels.registers import registers

ACCUMULATORS = 12  # enough for two units of latency 4 to 6, few enough for 16 registers
STEPS = 100_000


def fma_peak(lanes: int) -> tirx.PrimFunc:
    """Kernel x (2, lanes), y (12, lanes): `STEPS` times y = y * x[0] + x[1], in registers."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_attr({"tirx.noalias": True})
            x = T.arg("x", T.buffer((2, lanes), "float32"))
            y = T.arg("y", T.buffer((ACCUMULATORS, lanes), "float32"))
            acc = registers(ACCUMULATORS, lanes=lanes)
            for i, one in enumerate(acc):
                with T.vectorized(0, lanes) as v:
                    T.buffer_store(one, y[i, v], [v])
            with T.serial(0, STEPS):
                for one in acc:
                    with T.vectorized(0, lanes) as v:
                        T.buffer_store(one, one[v] * x[0, v] + x[1, v], [v])
            for i, one in enumerate(acc):
                with T.vectorized(0, lanes) as v:
                    T.buffer_store(y, one[v], [i, v])
    return builder.get()


def fma_peak_flop(lanes: int) -> int:
    """Floating-point operations of one call."""
    return 2 * STEPS * ACCUMULATORS * lanes
