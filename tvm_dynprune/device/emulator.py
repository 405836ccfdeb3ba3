# SPDX-License-Identifier: Apache-2.0
"""An emulated phone: the very bundle that goes to a real one, under QEMU's user emulation.

Its clock may be an exact count of the guest's instructions. Its time says nothing of a phone's.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tvm_dynprune.device.bundle import LOADER, SERVER, cache_folder
from tvm_dynprune.errors import ToolError
from tvm_dynprune.files import sha256, write_atomic

QEMU = "qemu-aarch64"
QEMU_ADVICE = "Debian, Ubuntu: apt install qemu-user"
CPUS = ("cortex-a53", "cortex-a57", "cortex-a72", "cortex-a76", "neoverse-n1", "max")
_COUNTER = Path(__file__).parent / "instruction_counter.c"


class EmulatedDevice:
    """A device server under QEMU; a context manager that ends it.

    Parameters
    ----------
    bundle
        What `build_bundle` wrote.
    cpu
        One of `CPUS`: which instructions there are.
    page_bytes
        Size of a memory page, 4096 or 16384.
    count_instructions
        Whether the device's clock counts the instructions that it executes, one thread's only.
    port
        0 for any that is free; see `address`.
    tracker, key
        HOST:PORT of a tracker to register with, under which key.

    Raises
    ------
    ToolError
        QEMU is missing, or the server does not start; the message has what it said.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        cpu: str = "cortex-a76",
        page_bytes: int = 4096,
        count_instructions: bool = False,
        threads: int = 1,
        port: int = 0,
        tracker: str | None = None,
        key: str = "",
    ) -> None:
        qemu = shutil.which(QEMU)
        if qemu is None:
            raise ToolError(f"emulating a phone needs {QEMU}: {QEMU_ADVICE}")
        if count_instructions and threads != 1:
            raise ToolError("instructions are counted for one thread: pass --threads 1")
        if not (bundle / SERVER).is_file():
            raise ToolError(f"{bundle}: no device bundle; `tvm-dynprune device bundle` makes one")
        self._work = tempfile.TemporaryDirectory()
        clock = Path(self._work.name) / "clock"
        # Without address randomisation counts are the same in every run.
        command = ["setarch", "-R", qemu, "-cpu", cpu, "-p", str(page_bytes)]
        server = ["--port", str(port), "--work", self._work.name, "--threads", str(threads)]
        if count_instructions:
            command += ["-plugin", f"{build_counter()},clock={clock}"]
            server += ["--clock", str(clock)]
        if tracker is not None:
            server += ["--tracker", tracker, "--key", key]
        command += [str(bundle / LOADER), "--library-path", str(bundle), str(bundle / SERVER)]
        self._process = subprocess.Popen(
            command + server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.address = self._listening()

    def _listening(self) -> str:
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            if found := re.fullmatch(r"listening on (\S+)\n", line):
                return found.group(1)
            said.append(line.strip())
        self.stop()
        raise ToolError(f"the emulated phone did not start: {' '.join(said) or 'it said nothing'}")

    def wait(self) -> None:
        """Print what the server says until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(line, end="", flush=True)

    def stop(self) -> None:
        """End the server and what it runs."""
        assert self._process.stdout is not None
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
        self._work.cleanup()

    def __enter__(self) -> "EmulatedDevice":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.stop()


def build_counter() -> Path:
    """Compile QEMU's instruction counter for this machine, once; returns the plugin's path."""
    out = cache_folder() / f"instruction_counter-{sha256(_COUNTER)[:12]}.so"
    if not out.is_file():
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise ToolError("counting instructions needs a C compiler: apt install gcc")
        with write_atomic(out) as temporary:
            command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(temporary), str(_COUNTER)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise ToolError(f"{compiler} cannot build the counter: {done.stderr.strip()}")
    return out
