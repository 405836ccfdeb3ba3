# SPDX-License-Identifier: Apache-2.0
"""The transforms of Winograd convolutions F(2, 3), F(4, 3) and F(4, 4), along one axis.

Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, section 4.1.
F(4, 4) has the points with the least error of those tried. Common terms are written so that the
compiler finds them.

The paper's factors of G's rows, 1/2 or 1/4, 1/6 and 1/24, stand in B^T for kernels of 3: an input
is transformed once for many outputs, while weights may be transformed for a few tiles only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

# By the number of products: the points at which polynomials are evaluated, but for infinity.
_POINTS = {4: (0, 1, -1), 6: (0, 1, -1, 2, -2), 7: (0, 1, -1, 1 / 2, -1 / 2, 2)}


def transformed_weight(weight: np.ndarray, m: int) -> np.ndarray:
    """G g G^T: (C_out, C_in, r, r) → (m + r - 1, m + r - 1, C_out, C_in), in float64."""
    r = weight.shape[-1]
    points = _POINTS[m + r - 1]
    rows = [[point**k for k in range(r)] for point in points]
    if r == 4:
        factors = [1 / np.prod([one - b for b in points if b != one]) for one in points]
        rows = [
            [factor * value for value in row] for factor, row in zip(factors, rows, strict=True)
        ]
    g = np.array([*rows, [0] * (r - 1) + [1]])
    return np.einsum("ak,ockl,bl->aboc", g, weight.astype("float64"), g, optimize=True)


def weight_transform(g: list, m: int, twice: Callable[[Any], Any] = lambda x: 2 * x) -> list:
    """G g for one column of 3 weights; `twice` doubles a value."""
    near = g[0] + g[2]
    if m == 2:
        return [g[0], near + g[1], near - g[1], g[2]]
    far, odd = g[0] + twice(twice(g[2])), twice(g[1])
    return [g[0], near + g[1], near - g[1], far + odd, far - odd, g[2]]


def twice_by_addition(x: Any) -> Any:
    """Add x to itself where kernels wait for multiply-adds: LLVM would make one more of it."""
    return T.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", x + x)


def input_transform(d: list) -> list:
    """B^T d for one column."""
    return {4: _input_of_4, 6: _input_of_6, 7: _input_of_7}[len(d)](d)


def _input_of_4(d: list) -> list:
    half = T.float32(1 / 2)
    even, odd = half * d[2], half * d[1]
    return [d[0] - d[2], even + odd, even - odd, d[1] - d[3]]


def _input_of_6(d: list) -> list:
    four, five = T.float32(4), T.float32(5)
    sixth, small = T.float32(1 / 6), T.float32(1 / 24)
    even, odd = (four * d[2] - d[4]) * sixth, four * d[1] - d[3]
    near, far = (d[4] - d[2]) * small, d[3] - d[1]
    return [
        d[0] - T.float32(5 / 4) * d[2] + T.float32(1 / 4) * d[4],
        even + sixth * odd,
        even - sixth * odd,
        near + T.float32(1 / 12) * far,
        near - T.float32(1 / 12) * far,
        d[5] - five * d[3] + four * d[1],
    ]


def _input_of_7(d: list) -> list:
    half, two, quarter = T.float32(1 / 2), T.float32(2), T.float32(1 / 4)

    def without(k: int, near: float) -> Any:
        """Polynomial x (x^2 - near) (x - 2) x^k, its coefficients times d."""
        e = d[k:]
        return e[4] - two * e[3] - T.float32(near) * e[2] + T.float32(2 * near) * e[1]

    def product(e: list) -> Any:
        """Polynomial (x^2 - 1) (x^2 - 1/4) (x - 2), likewise."""
        inner = T.float32(5 / 2) * e[2] + quarter * e[1] - half * e[0]
        return e[5] - two * e[4] - T.float32(5 / 4) * e[3] + inner

    ones, halves = [without(k, 1 / 4) for k in (0, 1)], [without(k, 1) for k in (0, 1)]
    return [
        product(d),
        ones[1] + ones[0],
        ones[1] - ones[0],
        halves[1] + half * halves[0],
        halves[1] - half * halves[0],
        d[5] - T.float32(5 / 4) * d[3] + quarter * d[1],
        product(d[1:]),
    ]


def output_transform(p: list, m: int) -> list:
    """A^T p for one column."""
    if m == 2:
        return [p[0] + p[1] + p[2], p[1] - p[2] - p[3]]
    near, near_odd = p[1] + p[2], p[1] - p[2]
    far, far_odd = p[3] + p[4], p[3] - p[4]
    if len(p) == 6:
        return [
            p[0] + near + far,
            near_odd + T.float32(2) * far_odd,
            near + T.float32(4) * far,
            near_odd + T.float32(8) * far_odd + p[5],
        ]
    two = p[5]
    return [
        p[0] + near + far + two,
        near_odd + T.float32(1 / 2) * far_odd + T.float32(2) * two,
        near + T.float32(1 / 4) * far + T.float32(4) * two,
        near_odd + T.float32(1 / 8) * far_odd + T.float32(8) * two + p[6],
    ]
