# SPDX-License-Identifier: Apache-2.0
"""The channel groups of a grouped convolution, as whole blocks that a kernel computes apart.

Narrow groups are merged until both of their sides are whole blocks. Between channels of groups
that were merged the weights are 0: more is multiplied, but in whole vectors.
"""

import numpy as np


def merged_groups(groups: int, channels_in: int, channels_out: int, lanes: int) -> int:
    """Most groups into which `groups` can be merged that are whole blocks of channels, or 1."""
    fitting = (
        count
        for count in range(groups, 1, -1)
        if groups % count == 0
        and channels_in % (count * lanes) == 0
        and channels_out % (count * lanes) == 0
    )
    return next(fitting, 1)


def merge_weight(weight: np.ndarray, groups: int, merged: int) -> np.ndarray:
    """Weights (C_out, C_in / groups, KH, KW) as (C_out, C_in / merged, KH, KW)."""
    together = groups // merged
    each_in, each_out = weight.shape[1], weight.shape[0] // groups
    split = weight.reshape(merged, together, each_out, *weight.shape[1:])
    whole = np.zeros((merged, together, each_out, together, *weight.shape[1:]), weight.dtype)
    for k in range(together):
        whole[:, k, :, k] = split[:, k]
    return whole.reshape(weight.shape[0], together * each_in, *weight.shape[2:])
