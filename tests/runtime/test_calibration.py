# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tvm_dynprune.runtime.calibration import Calibration


def layer(name: str, open_in: dict | None, open_out: dict | None) -> dict:
    sizes = {"channels_in": 4, "channels_out": 4, "macs_per_pair": 1}
    return {"layer": name, "open_in": open_in, "open_out": open_out, **sizes}


GATES = [
    np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool),
    np.array([[1, 0, 0, 0], [0, 0, 1, 1]], bool),
]
LAYERS = [
    layer("stem", None, {"gate": 0}),
    layer("middle", {"gate": 0}, {"any": [{"gate": 0}, {"gate": 1}]}),
    layer("last", {"gate": 1}, None),
    layer("free", None, None),
]


def test_open_sets_are_those_of_each_image():
    calibration = Calibration(LAYERS, GATES, 2)
    open_in, open_out = calibration.open_sets("stem")
    assert open_in is None
    np.testing.assert_array_equal(open_out, GATES[0])
    open_in, open_out = calibration.open_sets("middle")
    np.testing.assert_array_equal(open_out, GATES[0] | GATES[1])
    assert calibration.open_sets("free") == (None, None)


def test_products_are_means_over_the_images():
    products = Calibration(LAYERS, GATES, 2).open_products()
    assert products["stem"] == pytest.approx((2 / 4 + 1) / 2)
    assert products["middle"] == pytest.approx((2 * 2 / 16 + 4 * 4 / 16) / 2)
    assert products["free"] == 1
