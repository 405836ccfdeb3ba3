# SPDX-License-Identifier: Apache-2.0
"""The profile ``host``: the machine this runs on, found out when asked for."""

from pathlib import Path
from typing import Any

from tvm_dynprune.errors import SocError
from tvm_dynprune.soc.features import (
    CPUINFO,
    assumed_features,
    hidden_arm_features,
    hidden_x86_features,
)
from tvm_dynprune.soc.machine import CPU_FOLDER, count_cores, read_caches
from tvm_dynprune.soc.model import HOST, Cluster, Soc
from tvm_dynprune.soc.profile import list_profiles, shipped_profile

# By (is x86-64, lanes): whose kernel costs a machine takes.
SIMILAR = {
    (True, 16): "x86-avx512",
    (True, 8): "x86-avx2",
    (True, 4): "x86-avx2",
    (False, 4): "aarch64-generic",
}
ARM_VECTORS = (4, 32)  # NEON; kernels do not use SVE


def detect_host() -> Soc:
    """Profile of the machine this runs on: LLVM's name for its processor, caches from the kernel.

    Raises
    ------
    SocError
        The processor is neither x86-64 nor 64-bit ARM.
    """
    from tvm.target import codegen

    target: dict[str, Any] = {
        "mtriple": codegen.llvm_get_system_triple(),
        "mcpu": codegen.llvm_get_system_cpu(),
    }
    architecture = target["mtriple"].split("-")[0]
    if architecture not in ("aarch64", "arm64", "x86_64"):
        raise SocError(
            f"this machine is {architecture}, which has no code generator here; --soc takes "
            f"{', '.join(list_profiles())}"
        )
    x86 = architecture == "x86_64"
    features = assumed_features(target)
    hidden = (hidden_x86_features if x86 else hidden_arm_features)(features, CPUINFO)
    if hidden:
        target["mattr"] = [f"-{feature}" for feature in hidden]
    lanes, registers = x86_vectors(features - set(hidden)) if x86 else ARM_VECTORS
    l1d, l2, l3 = read_caches(Path("/") / CPU_FOLDER / "cpu0/cache")
    return Soc(
        name=HOST,
        description=f"this machine ({target['mcpu']})",
        target=target,
        clusters=(Cluster("all", count_cores(), target["mcpu"]),),
        network_cluster="all",
        lanes=lanes,
        vector_registers=registers,
        l1d_kib=l1d,
        l2_kib=l2,
        l3_kib=l3,
        cost=shipped_profile(SIMILAR[x86, lanes]).cost,
    )


def x86_vectors(features: set[str]) -> tuple[int, int]:
    """Return float32 lanes and register count of the widest vectors among x86 `features`."""
    # Without VL there are no masked 128- and 256-bit forms for the tails (Knights Landing).
    if {"avx512f", "avx512vl"} <= features:
        return 16, 32
    if {"avx2", "fma"} <= features:
        return 8, 16
    return 4, 16
