# SPDX-License-Identifier: Apache-2.0
"""Pieces that all sections of the page are made of, as HTML text."""

from collections.abc import Sequence
from html import escape

import numpy as np


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a card with a table of cells that are HTML already; a row's first cell heads it."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = [
        f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    ]
    return (
        f'<div class="card"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(items: Sequence[tuple[str, str]]) -> str:
    """Return named values as a list; the values are HTML already."""
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in items)}</dl>"


def plot(svg: str) -> str:
    """Return a card with a plot in it."""
    return f'<div class="card plot">{svg}</div>'


def percent(value: float | None, decimals: int = 1) -> str:
    """Return a fraction in percent, or a dash."""
    return "–" if value is None else f"{100 * value:.{decimals}f} %"


def number(value: float | None) -> str:
    """Return a number with two decimals, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def times(value: float | None) -> str:
    """Return a ratio, or a dash."""
    return "–" if value is None else f"{value:.2f}×"


def error(value: float | None) -> str:
    """Return an error's magnitude, or a dash."""
    return "–" if value is None else f"{value:.1e}"


def ms(value: float) -> str:
    """Return milliseconds, or a dash."""
    return "–" if np.isnan(value) else f"{value:.3g} ms"


def points(value: float | None) -> str:
    """Return a change in percentage points with its sign, or a dash."""
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def link(address: str) -> str:
    """Return a link, short as a reference: arXiv's number, or a repository."""
    shown = address.removeprefix("https://")
    if shown.startswith("arxiv.org/abs/"):
        shown = f"arXiv {shown.removeprefix('arxiv.org/abs/')}"
    shown = "/".join(shown.split("/")[:3])
    return f'<a href="{escape(address)}">{escape(shown)}</a>'


def wrapped(text: str) -> str:
    """Return text that may take several lines of a table's cell."""
    return f'<span class="wrapped">{escape(text)}</span>'
