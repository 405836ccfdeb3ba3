# SPDX-License-Identifier: Apache-2.0
"""SoC profiles: what the compiler knows about the machine that a network will run on.

A profile is data, one ``schedules/<name>.toml`` each; a new SoC needs no Python. The name ``host``
stands for the machine this runs on, and is found out when asked for.
"""

from tvm_dynprune.soc.features import (
    absent_features as absent_features,
    hidden_x86_features as hidden_x86_features,
    in_precision as in_precision,
    missing_here as missing_here,
    missing_on as missing_on,
    required_features as required_features,
)
from tvm_dynprune.soc.host import detect_host as detect_host
from tvm_dynprune.soc.load import list_socs as list_socs, load_soc as load_soc
from tvm_dynprune.soc.machine import count_cores as count_cores, read_caches as read_caches
from tvm_dynprune.soc.model import HOST as HOST, Cluster as Cluster, Cost as Cost, Soc as Soc
from tvm_dynprune.soc.profile import read_profile as read_profile
