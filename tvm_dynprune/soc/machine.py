# SPDX-License-Identifier: Apache-2.0
"""What Linux tells of a machine: processors, frequencies, features, caches."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from tvm_dynprune.soc.features import listed_features

CPU_FOLDER = "sys/devices/system/cpu"
# Of a machine that says nothing: level-1 data, level 2 and level 3 in KiB that nearly every 64-bit
# processor has.
USUAL_CACHES = (32, 256, 0)
# (implementer, part) of the Main ID Register → LLVM's name, slower ones first: Linux,
# arch/arm64/include/asm/cputype.h; Qualcomm's names for Arm's cores: pytorch/cpuinfo,
# src/arm/uarch.c.
_ARM, _QUALCOMM = 0x41, 0x51
PARTS = {
    (_ARM, 0xD04): "cortex-a35",
    (_ARM, 0xD03): "cortex-a53",
    (_QUALCOMM, 0x801): "cortex-a53",
    (_ARM, 0xD05): "cortex-a55",
    (_QUALCOMM, 0x803): "cortex-a55",
    (_QUALCOMM, 0x805): "cortex-a55",
    (_ARM, 0xD46): "cortex-a510",
    (_ARM, 0xD80): "cortex-a520",
    (_ARM, 0xD07): "cortex-a57",
    (_ARM, 0xD08): "cortex-a72",
    (_ARM, 0xD09): "cortex-a73",
    (_QUALCOMM, 0x800): "cortex-a73",
    (_ARM, 0xD0A): "cortex-a75",
    (_QUALCOMM, 0x802): "cortex-a75",
    (_ARM, 0xD0B): "cortex-a76",
    (_QUALCOMM, 0x804): "cortex-a76",
    (_ARM, 0xD0C): "neoverse-n1",
    (_ARM, 0xD0D): "cortex-a77",
    (_ARM, 0xD41): "cortex-a78",
    (_ARM, 0xD47): "cortex-a710",
    (_ARM, 0xD4D): "cortex-a715",
    (_ARM, 0xD81): "cortex-a720",
    (_ARM, 0xD87): "cortex-a725",
    (_ARM, 0xD44): "cortex-x1",
    (_ARM, 0xD48): "cortex-x2",
    (_ARM, 0xD4E): "cortex-x3",
    (_ARM, 0xD82): "cortex-x4",
    (_ARM, 0xD85): "cortex-x925",
    (_QUALCOMM, 0x001): "oryon-1",
}


@dataclass(frozen=True)
class Core:
    """One core; what is not known is None."""

    mcpu: str | None
    max_khz: int | None
    caches: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Machine:
    """What a machine tells of itself.

    Attributes
    ----------
    place
        For people: where it is.
    system
        As ``uname -sr``.
    architecture
        As ``uname -m``.
    features
        As its kernel names them; None where it does not say.
    """

    place: str
    model: str
    system: str
    architecture: str
    cores: tuple[Core, ...]
    features: frozenset[str] | None


def this_machine() -> Machine:
    """The machine this runs on."""
    from tvm.target import codegen

    system = f"{platform.system()} {platform.release()}"
    architecture = platform.machine()
    return read_machine(Path("/"), system, architecture, codegen.llvm_get_system_cpu())


def read_machine(root: Path, system: str, architecture: str, cpu: str) -> Machine:
    """What Linux tells under `root` of a machine.

    Parameters
    ----------
    root
        Folder with ``proc`` and ``sys``.
    system, architecture
        See `Machine`.
    cpu
        LLVM's name of the processor, on x86 or where ``/proc/cpuinfo`` lists no cores.
    """
    cpuinfo, folder = root / "proc/cpuinfo", root / CPU_FOLDER
    cpus = _read_cpus(cpuinfo) or dict.fromkeys(range(count_cores()), cpu)
    if architecture == "x86_64":
        cpus = dict.fromkeys(cpus, cpu)
    cores = []
    for number, mcpu in sorted(cpus.items()):
        frequency = _first_line(folder / f"cpu{number}/cpufreq/cpuinfo_max_freq")
        caches = folder / f"cpu{number}/cache"
        known = any(caches.glob("index*/size"))
        cores.append(
            Core(mcpu, int(frequency or 0) or None, read_caches(caches) if known else None)
        )
    features = listed_features(cpuinfo)
    return Machine(
        place="this machine",
        model=_model(root),
        system=system,
        architecture=architecture,
        cores=tuple(cores),
        features=None if features is None else frozenset(features),
    )


def read_caches(folder: Path) -> tuple[int, int, int]:
    """Return level-1 data, level-2 and level-3 cache sizes in KiB from Linux's sysfs `folder`.

    Where a level cannot be read (macOS, containers, many ARM kernels) it is `USUAL_CACHES`.
    """
    sizes: dict[int, int] = dict(enumerate(USUAL_CACHES, 1))
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


def _read_cpus(cpuinfo: Path) -> dict[int, str | None]:
    """Number of each core → LLVM's name of its part, None if `PARTS` lacks it."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return {}
    cpus = {}
    for block in re.split(r"^(?=processor\s*:)", text, flags=re.MULTILINE):
        found = dict(re.findall(r"^(processor|CPU \w+)\s*:\s*(\w+)\s*$", block, re.MULTILINE))
        if "processor" in found:
            part = [int(found.get(f"CPU {key}", "-1"), 0) for key in ("implementer", "part")]
            cpus[int(found["processor"])] = PARTS.get((part[0], part[1]))
    return cpus


def _model(root: Path) -> str:
    """Of the board, else of the processor; empty where neither is told."""
    board = _first_line(root / "proc/device-tree/model").rstrip("\0")
    try:
        cpuinfo = (root / "proc/cpuinfo").read_text()
    except OSError:
        return board
    processor = re.search(r"^model name\s*:\s*(.*?)\s*$", cpuinfo, re.MULTILINE)
    return board or ("" if processor is None else processor[1])


def _first_line(path: Path) -> str:
    """Empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
