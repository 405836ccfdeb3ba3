# SPDX-License-Identifier: Apache-2.0
"""The logs that ship are of the kernels of today: keys that changed would leave them unread."""

from pathlib import Path

import numpy as np
import pytest

from tvm_dynprune.bench.forced import Gating, force_gates, forced_model
from tvm_dynprune.compiler import compile
from tvm_dynprune.errors import LogError
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.conv2d_spec import is_tunable, kernel_target, module_specs
from tvm_dynprune.soc import load_soc
from tvm_dynprune.tune.open_cost import read_tuned

SOC = "x86-avx512"
LOGS = Path(__file__).parents[2] / "tuning_logs" / SOC


@pytest.mark.parametrize("name", ["vgg16_bn", "squeezenet1_1"])
def test_a_shipped_log_has_most_of_its_networks_kernels(name: str) -> None:
    soc, tuned = load_soc(SOC), read_tuned(LOGS / name)
    model = forced_model(force_gates(name, Gating(soc.lanes), inputs=1))
    chosen = pipeline.choose(pipeline.annotate(model.mod), soc)
    specs = [spec for _, spec in module_specs(chosen, kernel_target(soc)) if is_tunable(spec)]
    assert np.mean([workload_key(spec) in tuned for spec in specs]) > 0.8


def test_a_log_of_another_network_is_no_log(tmp_path: Path) -> None:
    model = forced_model(force_gates("fashion_cnn", Gating(), inputs=1))
    with pytest.raises(LogError, match="the log has none of fashion_cnn's kernels on x86-avx512"):
        compile(model, load_soc(SOC), tmp_path / "a", tuned=read_tuned(LOGS / "vgg16_bn"))
