# SPDX-License-Identifier: Apache-2.0
"""Progress on the terminal (standard error), so that standard output stays for results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def track(text: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar; call what is yielded once per step."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    with console.status(text):
        yield
