# SPDX-License-Identifier: Apache-2.0
"""JSON and TOML values to typed fields: what is wrong is named on one line."""

import json
import math
import re
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from tvm_dynprune.errors import DataError

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can hold it, UTF-8 cannot


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises
    ------
    DataError
        It cannot be read, or is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file: {error}") from None


def parse_json(text: str, where: object) -> Any:
    """Return what JSON text means; DataError names `where` it stands."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON file: {error}") from None


def convert(kind: Any, value: Any, where: str = "") -> Any:
    """Return JSON `value` as type `kind`; ValueError names the field that `where` leads to.

    Fields that `kind` does not have are ignored.
    """
    if isinstance(kind, types.UnionType):
        rest = [option for option in get_args(kind) if option is not type(None)]
        return None if value is None else convert(rest[0], value, where)
    if get_origin(kind) is list and isinstance(value, list):
        (item,) = get_args(kind)
        return [convert(item, one, f"{where}[{i}]") for i, one in enumerate(value)]
    if get_origin(kind) is dict and isinstance(value, dict):
        item = get_args(kind)[1]
        return {convert(str, k): convert(item, v, f"{where}.{k}") for k, v in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return _convert_fields(kind, value, where)
    if kind is float and _is_number(value):
        return float(value)
    if kind is int and _is_number(value) and value == int(value):
        return int(value)
    if kind is str and isinstance(value, str) and not _SURROGATE.search(value):
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise ValueError(f"{where or 'the file'} = {str(value)[:40]} is not of type {wanted}")


def _is_number(value: Any) -> bool:
    """Whether JSON `value` is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's integers have no limit
        return False


def _convert_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    prefix = f"{where}." if where else ""
    found = {}
    for field in fields(kind):
        if field.name in value:
            found[field.name] = convert(field.type, value[field.name], prefix + field.name)
        elif field.default is not None:
            raise ValueError(f"{prefix}{field.name} is missing")
    return kind(**found)


def check_fraction(value: float | None, where: str) -> None:
    """Raise ValueError if `value` is there and not between 0 and 1."""
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{where} = {value:g} is not a fraction between 0 and 1")
