# SPDX-License-Identifier: Apache-2.0
"""What `tvm-dynprune doctor` looks at: everything outside this package that it needs.

Nothing here may fail where something is missing, least of all TVM: that is what it is for.
"""

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tvm_dynprune.device.bundle import CROSS_COMPILER, CROSS_COMPILER_ADVICE
from tvm_dynprune.device.emulator import QEMU, QEMU_ADVICE
from tvm_dynprune.device.linker import LINKER_ADVICE, find_linker
from tvm_dynprune.files import shipped

TVM_VERSION = "0.27.0.post1"
FFI_SERIES = "0.1.14"  # 0.1.15 segfaults when MetaSchedule serialises a TuneContext's module
FFI_ADVICE = 'pip install "apache-tvm-ffi>=0.1.14.post0,<0.1.15"'
# tvm.support.cc's order, so that the compiler found here is the one that TVM calls.
COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
COMPILER_ADVICE = (
    "Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install"
)


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    """A word or two."""
    ok: bool
    """False if something the package needs is missing or wrong."""
    detail: str
    """What was found, on one line."""
    advice: str = ""
    """What to do, on one line; also for what is optional and absent. Empty: nothing."""


def run_doctor() -> list[Check]:
    """Look at Python, packages, compiler, processor, data and disk; takes a few seconds.

    Returns
    -------
    list[Check]
        In reading order. The installation works if every ``ok`` is true.
    """
    checks: list[Callable[[], Check]] = [
        check_python,
        check_tvm,
        check_ffi,
        check_tvm_import,
        check_compiler,
        check_processor,
        check_data,
        check_temporary,
        check_torch,
        check_xgboost,
        check_linker,
        check_emulator,
    ]
    return [check() for check in checks]


def check_python() -> Check:
    """Python is 3.10 or later."""
    ok = sys.version_info >= (3, 10)
    detail = f"{platform.python_version()} at {sys.executable}"
    return Check("Python", ok, detail, "" if ok else "install Python 3.10 or later")


def check_tvm() -> Check:
    """TVM is the one version whose IR the passes are written for."""
    found = _version("apache-tvm")
    ok = found == TVM_VERSION
    advice = f'pip install "apache-tvm[popen-pool,rpc]=={TVM_VERSION}"'
    return Check("TVM", ok, found or "not installed", "" if ok else advice)


def check_ffi() -> Check:
    """apache-tvm-ffi is of the series that does not crash this TVM."""
    found = _version("apache-tvm-ffi")
    if found is None:
        return Check("TVM FFI", False, "not installed", FFI_ADVICE)
    if found != FFI_SERIES and not found.startswith(f"{FFI_SERIES}."):
        detail = f"{found}: TVM {TVM_VERSION} works with {FFI_SERIES} only, 0.1.15 crashes it"
        return Check("TVM FFI", False, detail, FFI_ADVICE)
    return Check("TVM FFI", True, found)


def check_tvm_import() -> Check:
    """TVM's libraries load and hold LLVM."""
    try:
        importlib.import_module("tvm")
        codegen = importlib.import_module("tvm.target.codegen")
        major = codegen.llvm_version_major(allow_none=True)
    except Exception as error:  # whatever a broken installation raises is the finding
        advice = "see the lines on TVM above; then reinstall apache-tvm and apache-tvm-ffi"
        return Check("TVM loads", False, _first_line(error), advice)
    if major is None:
        return Check("TVM loads", False, "built without LLVM", "use TVM's own wheel from PyPI")
    return Check("TVM loads", True, f"with LLVM {major}")


def check_compiler() -> Check:
    """Find a compiler that really links a shared library, as `compile` has it do."""
    compiler = os.environ.get("CXX") or os.environ.get("CC") or find_compiler()
    if compiler is None:
        return Check("C++ compiler", False, f"none of {', '.join(COMPILERS)}", COMPILER_ADVICE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.c"
            source.write_text("int tvm_dynprune_doctor;\n")
            command = [compiler, "-shared", "-fPIC", "-o", f"{folder}/empty.so", str(source)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("C++ compiler", False, f"{compiler}: {_first_line(error)}", COMPILER_ADVICE)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        return Check("C++ compiler", False, f"{compiler} cannot link: {said}", COMPILER_ADVICE)
    return Check("C++ compiler", True, compiler)


def find_compiler() -> str | None:
    """Path of the compiler that TVM would call if neither CXX nor CC is set."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def check_processor() -> Check:
    """Describe the processor, and what its system hides of it."""
    try:
        from tvm_dynprune.soc import load_soc

        soc = load_soc("host")
        soc.tvm_target()
    except Exception as error:  # without TVM there is no profile; the lines above say so
        return Check(
            "processor", False, _first_line(error), "pass --soc NAME to compile for others"
        )
    detail = (
        f"{soc.target['mcpu']}, {soc.cores} cores, {soc.lanes} float32 lanes, "
        f"caches {soc.l1d_kib}/{soc.l2_kib}/{soc.l3_kib} KiB"
    )
    hidden = [flag[1:] for flag in soc.target.get("mattr", []) if flag.startswith("-")]
    if hidden:
        return Check(
            "processor",
            True,
            f"{detail}; the system hides {', '.join(hidden)}",
            "a virtual machine whose host passes its processor through would be faster",
        )
    return Check("processor", True, detail)


def check_data() -> Check:
    """SoC profiles, tuning logs and the demo's files are where the package looks."""
    try:
        folders = [shipped(name) for name in ("schedules", "tuning_logs", "demo")]
    except FileNotFoundError as error:
        return Check("package data", False, _first_line(error), "reinstall tvm-dynprune")
    profiles = len(list(folders[0].glob("*.toml")))
    detail = f"{profiles} SoC profiles in {folders[0]}"
    return Check("package data", profiles > 0, detail, "" if profiles else "reinstall tvm-dynprune")


def check_temporary() -> Check:
    """Files can be written where TVM puts its own before linking."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "probe").write_bytes(b"x" * 4096)
            free_mib = shutil.disk_usage(folder).free >> 20
    except OSError as error:
        return Check(
            "temporary files", False, _first_line(error), "set TMPDIR to a writable folder"
        )
    advice = "" if free_mib >= 256 else "free some space, or set TMPDIR to another disk"
    detail = f"{tempfile.gettempdir()}, {free_mib} MiB free"
    return Check("temporary files", free_mib >= 256, detail, advice)


def check_torch() -> Check:
    """PyTorch, which only gates, training and .pt2 files need."""
    found = _version("torch")
    if found is None:
        detail = "not installed (needed only to insert gates, train, and read .pt2)"
        return Check("PyTorch", True, detail, "pip install 'tvm-dynprune[train]'")
    return Check("PyTorch", True, found)


def check_xgboost() -> Check:
    """XGBoost, which only tuning needs."""
    found = _version("xgboost-cpu") or _version("xgboost")
    if found is None:
        detail = "not installed (needed only to tune)"
        return Check("XGBoost", True, detail, "pip install 'tvm-dynprune[tune]'")
    return Check("XGBoost", True, found)


def check_linker() -> Check:
    """Find a linker for 64-bit ARM, which only compiling for phones needs."""
    linker = find_linker()
    if linker is None:
        return Check("ARM linker", True, "none (needed only to compile for phones)", LINKER_ADVICE)
    compiler = shutil.which(CROSS_COMPILER)
    if compiler is None:
        return Check(
            "ARM linker", True, f"{linker}; no {CROSS_COMPILER} for bundles", CROSS_COMPILER_ADVICE
        )
    return Check("ARM linker", True, f"{linker}; {compiler} builds bundles")


def check_emulator() -> Check:
    """QEMU, which only emulated phones need."""
    qemu = shutil.which(QEMU)
    if qemu is None:
        return Check("QEMU", True, "not installed (needed only to emulate a phone)", QEMU_ADVICE)
    return Check("QEMU", True, qemu)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
