# SPDX-License-Identifier: Apache-2.0
"""What the kernel tests share: compile one kernel, blocked tensors, lists of open channels."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx

from tests.linked import linked
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.soc import Soc, load_soc

OPENNESS = ("open", "closed", "mixed")
FEW_REGISTERS = 10  # not as many as any machine has
TOLERANCE = 1e-5  # of the reference's largest magnitude


@lru_cache
def host_target(*, optimized: bool = True) -> tvm.target.Target:
    return (load_soc("host") if optimized else quick_host()).tvm_target()


def quick_host() -> Soc:
    """This machine, for code that is soon compiled: not optimised, of small unrolled loops."""
    host = load_soc("host")
    target = {**host.target, "opt-level": 0}
    return replace(host, target=target, vector_registers=FEW_REGISTERS)


@lru_cache
def permutes(lanes: int) -> str:
    """What permutes vectors of so many lanes on this machine, if it has such."""
    host = load_soc("host")
    return replace(host, lanes=lanes).permutes if lanes <= host.lanes else ""


def compiled(kernel: tirx.PrimFunc) -> Callable:
    """The kernel as a function of numpy arrays and integers; it writes the last array.

    LLVM optimises every fourth kernel: that takes a third of the time, and each artifact is
    compared with its network when it is compiled.
    """
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    target = host_target(optimized=tvm_ffi.structural_hash(kernel) % 4 == 0)
    main = linked(tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE))["main"]

    def call(*arguments):
        tensors = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        main(*tensors)
        for array, tensor in zip(arguments, tensors, strict=True):
            if isinstance(array, np.ndarray):
                array[...] = tensor.numpy()

    return call


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype("float32")


def blocked(plain: np.ndarray, size: FeatureMap) -> np.ndarray:
    """NCHW as the kernels want it: the halo zero, the lanes past C anything (here NaN)."""
    n, c, h, w = plain.shape
    padded = np.full((n, size.blocks * size.lanes, h, w), np.nan, "float32")
    padded[:, :c] = plain
    result = np.zeros(size.shape, "float32")
    inner = padded.reshape(n, size.blocks, size.lanes, h, w).transpose(0, 1, 3, 4, 2)
    result[:, :, size.halo : size.halo + h, size.halo : size.halo + w] = inner
    return result


def plain(blocked: np.ndarray, size: FeatureMap) -> np.ndarray:
    """The (N, C, H, W) inside a blocked tensor."""
    rows = slice(size.halo, size.halo + size.height)
    columns = slice(size.halo, size.halo + size.width)
    inner = blocked[:, :, rows, columns].transpose(0, 1, 4, 2, 3)
    shape = (size.batch, size.blocks * size.lanes, size.height, size.width)
    return np.ascontiguousarray(inner).reshape(shape)[:, : size.channels]


def halo_of(blocked: np.ndarray, size: FeatureMap) -> np.ndarray:
    """Every element of the halo, (N, blocks, elements)."""
    border = np.ones(size.shape[2:4], bool)
    border[size.halo : size.halo + size.height, size.halo : size.halo + size.width] = False
    return blocked[:, :, border].reshape(size.batch, size.blocks, -1)


def unwritten(size: FeatureMap) -> np.ndarray:
    """A blocked tensor in which nothing has been written: NaN."""
    return np.full(size.shape, np.nan, "float32")


def open_list(is_open: np.ndarray, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """(items, count) of (N, C) bool, written down again without the kernel."""
    n, c = is_open.shape
    length = -(-c // unit)
    padded = np.pad(is_open, ((0, 0), (0, length * unit - c)))
    by_block = padded.reshape(n, length, unit).any(2)
    items = np.argsort(~by_block, axis=1, kind="stable").astype("int32")
    return items, by_block.sum(1).astype("int32")


def open_channels(kind: str, n: int, c: int, group: int, *, seed: int = 1) -> np.ndarray:
    """(N, C) bool: "open", "closed" or "mixed" by groups, the mixed ones other for each sample."""
    groups = -(-c // group)
    if kind == "mixed":
        decided = np.random.default_rng((seed, n, c, group)).random((n, groups)) < 0.5
        decided[0, 0], decided[0, -1] = (True, False) if groups > 1 else (True, True)
    else:
        decided = np.full((n, groups), kind == "open")
    return decided.repeat(group, axis=1)[:, :c]


def unwritten_pool(size: FeatureMap) -> np.ndarray:
    """Means of a tensor's channels, (N, blocks, 1, 1, lanes), none of which has been written."""
    return np.full((size.batch, size.blocks, 1, 1, size.lanes), np.nan, "float32")


def assert_pooled(pool: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """The means of the expected (N, C, H, W); 0 for channels that stay unwritten, NaN."""
    batch, channels = expected.shape[:2]
    means = np.nan_to_num(expected.astype("float64")).mean((2, 3)).astype("float32")
    assert_close(pool.reshape(batch, -1)[:, :channels], means, tolerance)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """Equal up to `tolerance` of the expected values' scale, NaN exactly where expected."""
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    if np.isnan(expected).all():
        return
    scale = max(1.0, float(np.nanmax(np.abs(expected))))
    assert float(np.nanmax(np.abs(actual - expected))) <= tolerance * scale
