# SPDX-License-Identifier: Apache-2.0
"""Instruction sets: what LLVM will use, and what a machine has."""

import platform
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvm_dynprune.errors import SocError
from tvm_dynprune.soc.model import Soc

# What `host` turns off where the kernel (or a hypervisor) hides it although LLVM, which goes by
# the model's name, believes it there. avx512f takes every other AVX-512 feature with it.
X86_FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
# LLVM's name → the kernel's (Linux, Documentation/arch/arm64/elf_hwcaps.rst).
ARM_FEATURES = {
    "neon": "asimd",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "rcpc": "lrcpc",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
    "fp16fml": "asimdfhm",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}
CPUINFO = Path("/proc/cpuinfo")


def assumed_features(target: dict[str, Any]) -> set[str]:
    """All features, as LLVM names them, that it will use for a target."""
    import tvm
    from tvm.target import codegen

    return set(codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", **target})))


def required_features(soc: Soc) -> list[str]:
    """Return the instruction sets, as the kernel names them, that code for `soc` may use."""
    from tvm.target import codegen

    available = codegen.llvm_get_cpu_features(soc.tvm_target())
    if soc.target["mtriple"].startswith("aarch64"):
        return [name for feature, name in ARM_FEATURES.items() if feature in available]
    return [feature for feature in X86_FEATURES if feature in available]


def in_precision(soc: Soc, precision: str) -> Soc:
    """The SoC as kernels of a precision see it: vectors of float16 have twice the lanes.

    Raises
    ------
    SocError
        It does not compute in that precision, or there is no such.
    """
    if precision == "float32":
        return soc
    if precision != "float16":
        raise SocError(f"precision {precision}: float32 or float16")
    if "asimdhp" not in required_features(soc):
        raise SocError(
            f"SoC {soc.name} has no float16 arithmetic (asimdhp), or its profile does not say so; "
            "compile with --precision float32"
        )
    return replace(soc, lanes=2 * soc.lanes)


def listed_features(cpuinfo: Path) -> list[str] | None:
    """Features of the first core in the kernel's `cpuinfo`; None if it cannot be read or has none.

    The kernel gives all cores the features that all of them have.
    """
    try:
        listed = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if listed is None else listed.group(1).split()


def absent_features(wanted: Sequence[str], cpuinfo: Path) -> list[str]:
    """Return those of `wanted` that the kernel's `cpuinfo` does not list, if it can be read."""
    present = listed_features(cpuinfo)
    return [] if present is None else [name for name in wanted if name not in present]


def hidden_x86_features(assumed: set[str], cpuinfo: Path) -> list[str]:
    """Return the features that LLVM assumes and the kernel's `cpuinfo` does not list.

    Virtual machines report a model whose vector units they may have switched off; code for the
    model's name would then die of an illegal instruction. Empty where `cpuinfo` cannot be read.
    """
    return absent_features([name for name in X86_FEATURES if name in assumed], cpuinfo)


def hidden_arm_features(assumed: set[str], cpuinfo: Path) -> list[str]:
    """Return the same on ARM, by LLVM's names: many phones' kernels hide SVE."""
    kernels = {ARM_FEATURES[name]: name for name in ARM_FEATURES if name in assumed}
    return [kernels[name] for name in absent_features(list(kernels), cpuinfo)]


def missing_on(
    target: dict[str, Any],
    features: Sequence[str],
    architecture: str,
    present: Collection[str] | None,
) -> str:
    """Return what a machine lacks to run code for `target`; empty if nothing.

    Parameters
    ----------
    target
        Of a `Soc`.
    features
        What the code needs; see `required_features`.
    architecture
        The machine's, as ``uname -m`` names it.
    present
        Features that its kernel lists; None where it lists none, and all are believed there.
    """
    wanted = target["mtriple"].split("-")[0]
    architecture = {"arm64": "aarch64"}.get(architecture, architecture)
    if wanted != architecture:
        return f"the architecture ({wanted}; it is {architecture})"
    return "" if present is None else ", ".join(name for name in features if name not in present)


def missing_here(target: dict[str, Any], features: list[str]) -> str:
    """Return what this machine lacks to run code for `target`; empty if nothing."""
    return missing_on(target, features, platform.machine(), listed_features(CPUINFO))
