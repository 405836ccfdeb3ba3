# SPDX-License-Identifier: Apache-2.0
"""The transforms of Winograd convolutions F(2, 3), F(4, 3) and F(3, 4), along one axis.

Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, section 4.1;
F(3, 4) has the points, and therefore the input transform, of F(4, 3). Common terms are written so
that the compiler finds them.
"""

import numpy as np
from tvm.script.ir_builder import tirx as T

# By the number of products: the points at which polynomials are evaluated, but for infinity, and
# the factor that the input's transform leaves for the weight's.
_POINTS = {
    4: ((0, 1), (1, 1 / 2), (-1, 1 / 2)),
    6: ((0, 1 / 4), (1, -1 / 6), (-1, -1 / 6), (2, 1 / 24), (-2, 1 / 24)),
}


def transformed_weight(weight: np.ndarray, m: int) -> np.ndarray:
    """G g G^T: (C_out, C_in, r, r) → (m + r - 1, m + r - 1, C_out, C_in), in float64."""
    r = weight.shape[-1]
    rows = [[factor * point**k for k in range(r)] for point, factor in _POINTS[m + r - 1]]
    g = np.array([*rows, [0] * (r - 1) + [1]])
    return np.einsum("ak,ockl,bl->aboc", g, weight.astype("float64"), g, optimize=True)


def weight_transform(g: list, m: int) -> list:
    """G g for one column of 3 weights."""
    odd = g[1] * T.float32(1 / 2 if m == 2 else 1 / 6)
    if m == 2:
        even = (g[0] + g[2]) * T.float32(1 / 2)
        return [g[0], even + odd, even - odd, g[2]]
    near = (g[0] + g[2]) * T.float32(-1 / 6)
    far, far_odd = g[0] * T.float32(1 / 24) + g[2] * T.float32(1 / 6), g[1] * T.float32(1 / 12)
    return [g[0] * T.float32(1 / 4), near - odd, near + odd, far + far_odd, far - far_odd, g[2]]


def input_transform(d: list) -> list:
    """B^T d for one column."""
    if len(d) == 4:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    four, two = T.float32(4), T.float32(2)
    even, odd = d[4] - four * d[2], d[3] - four * d[1]
    near, far = d[4] - d[2], two * (d[3] - d[1])
    return [
        four * d[0] - T.float32(5) * d[2] + d[4],
        even + odd,
        even - odd,
        near + far,
        near - far,
        four * d[1] - T.float32(5) * d[3] + d[5],
    ]


def output_transform(p: list, m: int) -> list:
    """A^T p for one column."""
    if len(p) == 4:
        return [p[0] + p[1] + p[2], p[1] - p[2] - p[3]]
    near, near_odd = p[1] + p[2], p[1] - p[2]
    far, far_odd = p[3] + p[4], p[3] - p[4]
    first = [p[0] + near + far, near_odd + T.float32(2) * far_odd]
    if m == 3:
        return [*first, near + T.float32(4) * far + p[5]]
    return [*first, near + T.float32(4) * far, near_odd + T.float32(8) * far_odd + p[5]]
