# SPDX-License-Identifier: Apache-2.0
"""Writing files so that an interruption loses nothing, and finding what ships in the package."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvm_dynprune.errors import OutputExistsError


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder_atomic(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without error.

    Raises
    ------
    OutputExistsError
        `path` exists and `force` is false.
    """
    refuse_existing(path, force=force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        remove(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputExistsError if `path` exists and `force` is false."""
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists: choose another --out or pass --force")


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shipped(folder: str) -> Path:
    """Path of a data folder: inside the installed package, else in the checkout.

    ``schedules``, ``tuning_logs`` and ``demo`` stand beside the package in the checkout and inside
    it in the wheel.
    """
    here = Path(__file__).parent
    candidates = [here / folder, here.parent / folder]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{folder}: looked in {', '.join(map(str, candidates))}")
