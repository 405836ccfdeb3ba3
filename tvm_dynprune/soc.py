# SPDX-License-Identifier: Apache-2.0
"""SoC profiles: what the compiler knows about the machine that a network will run on.

A profile is data, one ``schedules/<name>.toml`` each; a new SoC needs no Python. The name ``host``
stands for the machine this runs on, and is found out when asked for.
"""

import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_dynprune.errors import SocError
from tvm_dynprune.files import shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

if TYPE_CHECKING:
    from tvm.target import Target

HOST = "host"
# By (is x86-64, lanes): whose kernel costs the host takes.
_SIMILAR = {
    (True, 16): "x86-avx512",
    (True, 8): "x86-avx2",
    (True, 4): "x86-avx2",
    (False, 4): "aarch64-generic",
}
TARGET_KEYS = {"mtriple": str, "mcpu": str, "mattr": list}
REQUIRED_TARGET_KEYS = ("mtriple", "mcpu")
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


@dataclass(frozen=True)
class Cost:
    """What one core's kernels cost, relative to a vector multiply-add out of the nearest cache."""

    transform: float
    """One vector of Winograd's transformed input or output."""
    weight: float
    """Bringing one vector of weights to the core from memory."""
    cached_weight: float
    """The same from the last-level cache, where a small network's weights stay."""
    weight_transform: float
    """One vector of Winograd's weights, transformed where it is used."""
    gather: float
    """One vector of weights, put together out of open channels."""


@dataclass(frozen=True)
class Soc:
    """One SoC, as far as the compiler's decisions depend on it."""

    name: str
    """What ``--soc`` calls it."""
    description: str
    """One line for people."""
    target: dict[str, Any]
    """LLVM target: ``mtriple``, ``mcpu`` and, where needed, ``mattr`` (list of ``+x``, ``-x``)."""
    cores: int
    """Cores that one inference may use."""
    lanes: int
    """float32 values in one SIMD register: the c of the NCHWc layout."""
    vector_registers: int
    """SIMD registers that one core's instructions can name."""
    l1d_kib: int
    """Level-1 data cache of one core, in KiB."""
    l2_kib: int
    """Level-2 cache as one core sees it, in KiB."""
    l3_kib: int
    """Last-level cache shared by the cores, in KiB; 0 where there is none."""
    cost: Cost
    """By which the compiler chooses between kernels; of a similar machine for ``host``."""

    @property
    def multiplies_by_lane(self) -> bool:
        """Whether one instruction multiplies a vector by one lane of another (fmla on ARM)."""
        return self.target["mtriple"].startswith(("aarch64", "arm64"))

    @property
    def cache_kib(self) -> int:
        """Of the last level, in KiB."""
        return max(self.l2_kib, self.l3_kib)

    def tvm_target(self) -> "Target":
        """TVM's target for code that runs on this SoC, with ``num-cores`` set.

        Raises
        ------
        SocError
            LLVM does not know the processor, so it would silently compile for a generic one.
        """
        import tvm
        from tvm.target import codegen

        triple, cpu = self.target["mtriple"], self.target["mcpu"]
        if not codegen.llvm_is_valid_cpu(cpu, triple):
            raise SocError(
                f"SoC {self.name}: LLVM {codegen.llvm_version_major()} knows no processor "
                f"{cpu!r} for {triple}; set mcpu to one it knows ('generic' always works on ARM)"
            )
        return tvm.target.Target({"kind": "llvm", "num-cores": self.cores, **self.target})


def list_socs() -> list[str]:
    """Names that `load_soc` takes: ``host`` first, then the profiles that ship, sorted."""
    return [HOST, *sorted(path.stem for path in shipped("schedules").glob("*.toml"))]


def load_soc(name: str) -> Soc:
    """Return the profile of one SoC.

    Parameters
    ----------
    name
        ``host`` for this machine, else the name of a profile in ``schedules/``.

    Raises
    ------
    SocError
        There is no such profile (the message lists those there are), or it is malformed.
    """
    if name == HOST:
        return detect_host()
    if name not in list_socs():
        raise SocError(f"unknown SoC {name!r}: known are {', '.join(list_socs())}")
    return read_profile(shipped("schedules") / f"{name}.toml")


def read_profile(path: Path) -> Soc:
    """Read one profile; keys that are missing, unknown or of the wrong type are errors.

    Raises
    ------
    SocError
        The file is no TOML or no profile; the message names the file and the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SocError(f"{path}: not a TOML file: {error}") from None
    kinds = {field.name: field.type for field in fields(Soc) if field.name != "name"}
    _check_keys(path, "", table, kinds.keys(), required=kinds.keys())
    for key, kind in kinds.items():
        value = table[key]
        if kind is int and (type(value) is not int or value < (0 if key == "l3_kib" else 1)):
            raise SocError(f"{path}: {key} = {value!r} is not a positive whole number")
        if kind is str and (not isinstance(value, str) or not value):
            raise SocError(f"{path}: {key} = {value!r} is not a text")
    _check_target(path, table["target"])
    return Soc(name=path.stem, **table | {"cost": _read_cost(path, table["cost"])})


def _read_cost(path: Path, table: object) -> Cost:
    keys = [field.name for field in fields(Cost)]
    if not isinstance(table, dict):
        raise SocError(f"{path}: cost is not a table with {', '.join(keys)}")
    _check_keys(path, "cost.", table, keys, required=keys)
    for key, value in table.items():
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise SocError(f"{path}: cost.{key} = {value!r} is not a positive number")
    return Cost(**table)


def _check_target(path: Path, target: object) -> None:
    if not isinstance(target, dict):
        raise SocError(f"{path}: target is not a table with {', '.join(TARGET_KEYS)}")
    _check_keys(path, "target.", target, TARGET_KEYS.keys(), required=REQUIRED_TARGET_KEYS)
    for key, value in target.items():
        if not isinstance(value, TARGET_KEYS[key]):
            kind = TARGET_KEYS[key].__name__
            raise SocError(f"{path}: target.{key} = {value!r} is not a {kind}")


def _check_keys(path: Path, prefix: str, table: Any, known: Any, *, required: Any) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        names = ", ".join(prefix + key for key in unknown)
        raise SocError(f"{path}: unknown key {names}; known are {', '.join(known)}")
    missing = [prefix + key for key in required if key not in table]
    if missing:
        raise SocError(f"{path}: missing key {', '.join(missing)}")


def detect_host() -> Soc:
    """Profile of the machine this runs on: LLVM's name for its processor, caches from the kernel.

    Raises
    ------
    SocError
        The processor is neither x86-64 nor 64-bit ARM.
    """
    import tvm
    from tvm.target import codegen

    target: dict[str, Any] = {
        "mtriple": codegen.llvm_get_system_triple(),
        "mcpu": codegen.llvm_get_system_cpu(),
    }
    architecture = target["mtriple"].split("-")[0]
    if architecture in ("aarch64", "arm64"):
        lanes, registers = 4, 32  # NEON; kernels do not use SVE
    elif architecture == "x86_64":
        features = codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", **target}))
        hidden = hidden_x86_features(features, Path("/proc/cpuinfo"))
        if hidden:
            target["mattr"] = [f"-{feature}" for feature in hidden]
        lanes, registers = _x86_vectors(set(features) - set(hidden))
    else:
        raise SocError(
            f"this machine is {architecture}, which has no code generator here; --soc takes "
            f"{', '.join(list_socs()[1:])}"
        )
    l1d, l2, l3 = read_caches(Path("/sys/devices/system/cpu/cpu0/cache"))
    return Soc(
        name=HOST,
        description=f"this machine ({target['mcpu']})",
        target=target,
        cores=count_cores(),
        lanes=lanes,
        vector_registers=registers,
        l1d_kib=l1d,
        l2_kib=l2,
        l3_kib=l3,
        cost=load_soc(_SIMILAR[architecture == "x86_64", lanes]).cost,
    )


def _x86_vectors(features: set[str]) -> tuple[int, int]:
    """Return float32 lanes and register count of the widest vectors among x86 `features`."""
    # Without VL there are no masked 128- and 256-bit forms for the tails (Knights Landing).
    if {"avx512f", "avx512vl"} <= features:
        return 16, 32
    if {"avx2", "fma"} <= features:
        return 8, 16
    return 4, 16


def hidden_x86_features(assumed: set[str], cpuinfo: Path) -> list[str]:
    """Return the features that LLVM assumes and the kernel's `cpuinfo` does not list.

    Virtual machines report a model whose vector units they may have switched off; code for the
    model's name would then die of an illegal instruction. Empty where `cpuinfo` cannot be read.
    """
    return absent_features([name for name in X86_FEATURES if name in assumed], cpuinfo)


def absent_features(wanted: Sequence[str], cpuinfo: Path) -> list[str]:
    """Return those of `wanted` that the kernel's `cpuinfo` does not list, if it can be read."""
    try:
        listed = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return []
    present = wanted if listed is None else listed.group(1).split()
    return [name for name in wanted if name not in present]


def read_caches(folder: Path) -> tuple[int, int, int]:
    """Return level-1 data, level-2 and level-3 cache sizes in KiB from Linux's sysfs `folder`.

    Where a level cannot be read (macOS, containers, many ARM kernels) it is a size that nearly
    every 64-bit processor has: 32 and 256 KiB, and no level 3.
    """
    sizes = {1: 32, 2: 256, 3: 0}
    for index in sorted(folder.glob("index*")):
        try:
            level = int((index / "level").read_text())
            kind = (index / "type").read_text().strip()
            size = re.fullmatch(r"(\d+)([KM])", (index / "size").read_text().strip())
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and size is not None and level in sizes:
            sizes[level] = int(size.group(1)) * (1024 if size.group(2) == "M" else 1)
    return sizes[1], sizes[2], sizes[3]


def count_cores() -> int:
    """Return how many cores this process may run on (`taskset` and containers are respected)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def required_features(soc: Soc) -> list[str]:
    """Return the instruction sets, as the kernel names them, that code for `soc` may use."""
    from tvm.target import codegen

    available = codegen.llvm_get_cpu_features(soc.tvm_target())
    if soc.target["mtriple"].startswith("aarch64"):
        return [name for feature, name in ARM_FEATURES.items() if feature in available]
    return [feature for feature in X86_FEATURES if feature in available]


def missing_here(target: dict[str, Any], features: list[str]) -> str:
    """Return what this machine lacks to run code for `target`; empty if nothing."""
    architecture = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    wanted = target["mtriple"].split("-")[0]
    if wanted != architecture:
        return f"the architecture ({wanted}, here is {architecture})"
    return ", ".join(absent_features(features, Path("/proc/cpuinfo")))
