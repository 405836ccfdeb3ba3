# SPDX-License-Identifier: Apache-2.0
"""The logs that ship are of the kernels of today: keys that changed would leave them unread."""

from pathlib import Path

import numpy as np
import pytest

from tvm_dynprune.bench.forced import Forced, forced_model
from tvm_dynprune.compiler import compile
from tvm_dynprune.errors import LogError
from tvm_dynprune.frontend.model import Model
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.networks import build_network
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.conv2d_spec import is_tunable, kernel_target, module_specs
from tvm_dynprune.soc import load_soc
from tvm_dynprune.tune.open_cost import read_tuned

SOC = "x86-avx512"
LOGS = Path(__file__).parents[2] / "tuning_logs" / SOC


def gated_model(name: str) -> Model:
    """A network with gates that decide anything: which kernels it has does not depend on them."""
    gated = insert_gates(build_network(name).eval(), group_size=16)
    return forced_model(Forced(name, gated, gated, np.empty(0)))


def test_a_shipped_log_has_most_of_its_networks_kernels() -> None:
    soc, tuned = load_soc(SOC), read_tuned(LOGS / "vgg16_bn")
    chosen = pipeline.choose(pipeline.annotate(gated_model("vgg16_bn").mod), soc)
    specs = [spec for _, spec in module_specs(chosen, kernel_target(soc)) if is_tunable(spec)]
    assert np.mean([workload_key(spec) in tuned for spec in specs]) > 0.8


def test_a_log_of_another_network_is_no_log(tmp_path: Path) -> None:
    model, tuned = gated_model("fashion_cnn"), read_tuned(LOGS / "vgg16_bn")
    with pytest.raises(LogError, match="the log has none of fashion_cnn's kernels on x86-avx512"):
        compile(model, load_soc(SOC), tmp_path / "a", tuned=tuned)
