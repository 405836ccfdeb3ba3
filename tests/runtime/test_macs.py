# SPDX-License-Identifier: Apache-2.0
import numpy as np

from tvm_dynprune.runtime.macs import dense_macs, executed_macs

FIRST = np.array([[True, False, True, True], [False, False, True, True]])
SECOND = np.array([[True, True], [False, True]])


def layer(open_in: object, open_out: object, channels: tuple[int, int], per_pair: int) -> dict:
    return {
        "channels_in": channels[0],
        "channels_out": channels[1],
        "macs_per_pair": per_pair,
        "open_in": open_in,
        "open_out": open_out,
    }


def test_counts_open_in_times_open_out() -> None:
    layers = [layer(None, {"gate": 0}, (3, 4), 10), layer({"gate": 0}, {"gate": 1}, (4, 2), 5)]
    expected = [3 * 3 * 10 + 3 * 2 * 5, 3 * 2 * 10 + 2 * 1 * 5]
    assert executed_macs(layers, [FIRST, SECOND]).tolist() == expected
    assert dense_macs(layers) == 3 * 4 * 10 + 4 * 2 * 5


def test_terms_combine() -> None:
    both = {"concat": [[{"gate": 1}, 2], [None, 2]]}
    layers = [
        layer(None, {"any": [{"gate": 0}, both]}, (1, 4), 1),
        layer(None, {"all": [{"gate": 0}, both]}, (1, 4), 1),
    ]
    counts = [executed_macs([item], [FIRST, SECOND]).tolist() for item in layers]
    assert counts == [[4, 3], [3, 2]]


def test_without_gates_everything_is_executed() -> None:
    layers = [layer(None, None, (3, 4), 10)]
    assert executed_macs(layers, []).tolist() == [120]
