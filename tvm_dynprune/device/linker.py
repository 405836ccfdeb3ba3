# SPDX-License-Identifier: Apache-2.0
"""Linking libraries for a 64-bit ARM device on another machine, without its system's files.

Compiled networks call a handful of functions of libc, libm and TVM's FFI. A linker needs to know
only in which library each is, so it gets stubs: libraries with names and no code, as an NDK's are.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tvm_dynprune.errors import ToolError

LINKERS = ("aarch64-linux-gnu-ld", "ld.lld")
LINKER_ADVICE = "Debian, Ubuntu: apt install binutils-aarch64-linux-gnu (or lld)"
PAGE_BYTES = 16384  # Android 15 and some boards have such pages; the library loads on 4096 as well

_MATH = (
    "acos acosh asin asinh atan atan2 atanh ceil cos cosh erf exp exp10 exp2 fabs floor fmax fmin "
    "fmod hypot ldexp log log10 log1p log2 nearbyint pow rint round sin sinh sqrt tan tanh trunc"
)
_MATH_SYMBOLS = [name + suffix for name in _MATH.split() for suffix in ("", "f")]
_C_SYMBOLS = ["abort", "memcpy", "memmove", "memset"]
_FFI_SYMBOLS = [
    "TVMFFIErrorSetRaisedFromCStr",
    "TVMFFIErrorSetRaisedFromCStrParts",
    "TVMFFIFunctionCall",
    "TVMFFIEnvGetStream",
    "TVMFFIEnvModLookupFromImports",
]


def is_android(triple: str) -> bool:
    """Whether libraries for `triple` run on Android's C library."""
    return "android" in triple


def find_linker() -> str | None:
    """Path of a linker for 64-bit ARM: the first of `LINKERS`, or lld of an Android NDK."""
    found = next((path for name in LINKERS if (path := shutil.which(name))), None)
    if found is None and (ndk := os.environ.get("ANDROID_NDK_HOME")):
        found = next(map(str, Path(ndk).glob("toolchains/llvm/prebuilt/*/bin/ld.lld")), None)
    return found


def link_library(triple: str) -> Callable[..., None]:
    """Return what `export_library` takes as `fcompile` for a 64-bit ARM `triple`.

    The library needs libc, libm and libtvm_ffi under the names that the triple's system gives
    them, has segments of 16 KiB pages and no text relocations.

    Raises
    ------
    ToolError
        There is no linker, or it refuses; the message has its first line.
    """
    linker = find_linker()
    if linker is None:
        raise ToolError(f"linking for {triple} needs one of {', '.join(LINKERS)}: {LINKER_ADVICE}")
    version = "" if is_android(triple) else ".6"
    stubs = {
        f"libm.so{version}": _MATH_SYMBOLS,
        f"libc.so{version}": _C_SYMBOLS,
        "libtvm_ffi.so": _FFI_SYMBOLS,
    }

    def link(out: str, objects: Sequence[str], options: Sequence[str] = ()) -> None:
        with tempfile.TemporaryDirectory() as folder:
            libraries = [
                write_stub(linker, Path(folder) / name, symbols) for name, symbols in stubs.items()
            ]
            command = [linker, "-m", "aarch64linux", "-shared", "-o", out, *objects, "--as-needed"]
            command += [*libraries, "-soname", Path(out).name, "-z", "defs", "-z", "text"]
            command += ["-z", f"max-page-size={PAGE_BYTES}", "--hash-style=gnu", *(options or ())]
            _run(command)

    return link


def write_stub(
    linker: str, out: Path, symbols: Sequence[str] = (), needs: Sequence[Path] = ()
) -> str:
    """Make a library which defines `symbols`, `needs` other libraries and holds no code."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nothing").touch()  # the linker wants an input of its own format
        make_object = [linker, "-m", "aarch64linux", "-r", "-o", "nothing.o", "-b", "binary"]
        _run([*make_object, "nothing"], folder)
        command = [linker, "-m", "aarch64linux", "-shared", "-soname", out.name]
        command += ["-o", str(out.resolve()), "-z", f"max-page-size={PAGE_BYTES}", "nothing.o"]
        command += [*map(str, needs), *(f"--defsym={symbol}=0" for symbol in symbols)]
        _run(command, folder)
    return str(out)


def _run(command: Sequence[str], folder: str | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        raise ToolError(f"{Path(command[0]).name} cannot link: {said}")
