# SPDX-License-Identifier: Apache-2.0
"""The folder that is pushed to a device: server, TVM's runtime, and the C libraries they need.

Everything stands in it, down to the dynamic loader, so that it starts on any 64-bit ARM Linux,
Android's included, whatever is installed there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tvm_dynprune.device.linker import find_linker, write_stub
from tvm_dynprune.errors import ToolError
from tvm_dynprune.files import sha256, write_folder_atomic
from tvm_dynprune.soc import Soc

CROSS_COMPILER = "aarch64-linux-gnu-g++"
CROSS_COMPILER_ADVICE = "Debian, Ubuntu: apt install g++-aarch64-linux-gnu"
SERVER, LOADER, START = "dynprune_server", "ld-linux-aarch64.so.1", "start.sh"
RUNTIME = ("libtvm_ffi.so", "libtvm_runtime.so", "libtvm_runtime_extra.so")
WHEELS = ("apache-tvm", "apache-tvm-ffi")
C_LIBRARIES = (LOADER, "libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6")
C_LIBRARIES += ("libpthread.so.0", "libstdc++.so.6")
_SOURCES = Path(__file__).parent / "server"


@dataclass(frozen=True)
class BundledFile:
    """One file of a bundle."""

    name: str
    size_bytes: int
    sha256: str


def build_bundle(soc: Soc, out: Path, *, force: bool = False) -> list[BundledFile]:
    """Make the folder to push to a device; needs a cross compiler, and PyPI once.

    Parameters
    ----------
    soc
        Whose number of cores the start script gives to the server.
    out
        Folder to write.

    Raises
    ------
    ToolError
        No cross compiler, or TVM's package for 64-bit ARM cannot be fetched.
    OutputExistsError
        `out` exists and `force` is false.
    """
    if not soc.target["mtriple"].startswith("aarch64"):
        raise ToolError(
            f"SoC {soc.name} is {soc.target['mtriple']}: bundles are for 64-bit ARM (aarch64)"
        )
    compiler = shutil.which(CROSS_COMPILER)
    if compiler is None:
        raise ToolError(
            f"building the device server needs {CROSS_COMPILER}: {CROSS_COMPILER_ADVICE}"
        )
    runtime = runtime_libraries()
    with write_folder_atomic(out, force=force) as folder:
        for path in runtime:
            shutil.copy2(path, folder)
        for name in C_LIBRARIES:
            shutil.copy2(_ask(compiler, f"-print-file-name={name}"), folder / name)
        _build_server(compiler, folder)
        _write_android_names(folder)
        _write_start(folder / START, soc)
        return [
            BundledFile(path.name, path.stat().st_size, sha256(path))
            for path in sorted(folder.iterdir())
        ]


def runtime_libraries() -> list[Path]:
    """TVM's runtime for 64-bit ARM, of the version that is installed here; fetched once.

    Raises
    ------
    ToolError
        pip cannot fetch the packages.
    """
    versions = {name: version(name) for name in WHEELS}
    folder = cache_folder() / "-".join(["aarch64", *versions.values()])
    if not folder.is_dir():
        with (
            write_folder_atomic(folder, force=True) as new,
            tempfile.TemporaryDirectory() as wheels,
        ):
            _download([f"{name}=={number}" for name, number in versions.items()], Path(wheels))
            for wheel in Path(wheels).glob("*.whl"):
                _unpack(wheel, new)
            missing = [name for name in RUNTIME if not (new / name).is_file()]
            if missing:
                raise ToolError(f"TVM's packages for aarch64 lack {', '.join(missing)}")
    return [folder / name for name in RUNTIME]


def cache_folder() -> Path:
    """Where what has been fetched or built is kept: ``$XDG_CACHE_HOME/tvm_dynprune``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tvm_dynprune"


def _download(requirements: list[str], folder: Path) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--platform", "manylinux_2_28_aarch64", "--python-version", python, *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ToolError(f"pip cannot fetch {' and '.join(requirements)} for aarch64: {said}")


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if Path(name).name in RUNTIME:
                (folder / Path(name).name).write_bytes(archive.read(name))


def _build_server(compiler: str, folder: Path) -> None:
    from tvm_ffi.libinfo import find_include_path

    command = [compiler, "-std=c++17", "-O2", "-Wall", f"-I{find_include_path()}"]
    command += [f'-DDYNPRUNE_TVM="{version("apache-tvm")}"', str(_SOURCES / "main.cc")]
    command += ["-o", str(folder / SERVER), f"-L{folder}", "-Wl,--no-as-needed", "-ltvm_runtime"]
    command += ["-ltvm_ffi", "-Wl,--as-needed", f"-Wl,-rpath-link,{folder}", "-ldl", "-s"]
    command += ["-Wl,-z,max-page-size=65536"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolError(f"{compiler} cannot build the device server: {done.stderr.strip()}")


def _write_android_names(folder: Path) -> None:
    """Let libraries that were linked for Android find glibc under Android's names."""
    linker = find_linker()
    assert linker is not None  # it came with the compiler
    for name in ("libc.so", "libm.so"):
        write_stub(linker, folder / name, needs=[(folder / f"{name}.6").resolve()])


def _write_start(path: Path, soc: Soc) -> None:
    path.write_text(
        "#!/bin/sh\n"
        "# Starts the server; takes its options: --port N, --tracker HOST:PORT --key KEY,\n"
        "# --host ADDRESS (loopback unless given: whoever reaches it can run any code here).\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f"exec ./{LOADER} --library-path . ./{SERVER} --threads {soc.cores} "
        '--work "${TMPDIR:-.}/dynprune_work" "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)


def _ask(compiler: str, question: str) -> Path:
    done = subprocess.run([compiler, question], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).resolve()
