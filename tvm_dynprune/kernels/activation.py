# SPDX-License-Identifier: Apache-2.0
"""The elementwise functions that a kernel applies to its accumulators."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

Factor = Callable[[int], Any]  # row of the factors → the channel's number in it


def no_factor(row: int) -> Any:
    """The `Factor` of kernels that have none."""
    raise ValueError(f"a kernel without factors has no row {row}")


@dataclass(frozen=True)
class Activation:
    """``min(max(x, low), high)`` where the bounds are given; ReLU is (0, None), ReLU6 (0, 6)."""

    low: float | None = 0.0
    high: float | None = None

    def __call__(self, value, _factor: Factor = no_factor):
        """The activation of a float32 TIR expression."""
        if self.low is not None:
            value = tirx.max(value, T.float32(self.low))
        if self.high is not None:
            value = tirx.min(value, T.float32(self.high))
        return value


@dataclass(frozen=True)
class Formula:
    """Any other activation.

    Attributes
    ----------
    text
        JSON: "x", a number, ``["factor", k]``, which is the channel's own number in row k of the
        kernel's factors, or a list of an operator of `OPERATORS` and its operands, such as
        ``["multiply", "x", ["sigmoid", "x"]]``.
    """

    text: str

    def __call__(self, value, factor: Factor = no_factor):
        """The activation of a float32 TIR expression; `factor` reads row k of the factors."""
        return _let(value, lambda x: _evaluate(json.loads(self.text), x, factor))


def factor_rows(activation: Activation | Formula | None) -> int:
    """How many rows of factors an activation reads."""
    text = activation.text if isinstance(activation, Formula) else ""
    return len(set(re.findall(r'"factor", \d+', text)))


def _evaluate(formula: Any, x, factor: Factor):
    match formula:
        case "x":
            return x
        case int() | float():
            return T.float32(formula)
        case ["factor", row]:
            return factor(row)
    name, *operands = formula
    return OPERATORS[name](*(_evaluate(operand, x, factor) for operand in operands))


def _let(value, body: Callable, dtype: str = "float32"):
    """``body(variable)``, with the value computed once."""
    variable = tirx.Var("t", dtype)
    return tirx.Let(variable, value, body(variable))


def _exp(x):
    """e**x to 2 units in the last place, without a branch, so that vectors stay vectors.

    Polynomial and split of ln 2 are those of Moshier's Cephes library (``expf``).
    """

    def of_clamped(x):
        return _let(tirx.floor(x * T.float32(1.44269504) + T.float32(0.5)), lambda k: parts(x, k))

    def parts(x, k):
        rest = x - k * T.float32(0.693359375) - k * T.float32(-2.12194440e-4)
        power = tirx.shift_left(T.cast(k, "int32") + 127, T.int32(23))
        return _let(rest, polynomial) * tirx.reinterpret("float32", power)

    def polynomial(r):
        total = T.float32(1.9875691500e-4)
        for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 0.16666665459, 0.5):
            total = total * r + T.float32(factor)
        return total * r * r + r + T.float32(1)

    return _let(tirx.max(tirx.min(x, T.float32(88)), T.float32(-87)), of_clamped)


def _log(x):
    """To 1 unit in the last place; of what is too small for a normal number, -inf.

    Without a branch; the polynomial is that of Moshier's Cephes library (``logf``).
    """

    def of_bits(bits):
        exponent = tirx.shift_right(bits, T.int32(23)) - 126
        mantissa = tirx.reinterpret("float32", (bits & 0x7FFFFF) | 0x3F000000)
        return _let(mantissa, lambda m: parts(m, T.cast(exponent, "float32")))

    def parts(m, exponent):
        is_low = m < T.float32(0.70710678)
        rest = tirx.Select(is_low, m + m, m) - T.float32(1)
        exponent = tirx.Select(is_low, exponent - T.float32(1), exponent)
        return _let(rest, lambda r: _let(exponent, lambda e: polynomial(r, e)))

    def polynomial(r, e):
        total = T.float32(7.0376836292e-2)
        for factor in (
            -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
            -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
        ):  # fmt: skip
            total = total * r + T.float32(factor)
        rest = total * r * r * r - T.float32(2.12194440e-4) * e - T.float32(0.5) * r * r
        return r + rest + T.float32(0.693359375) * e

    def checked(x):
        infinity = tirx.reinterpret("float32", T.int32(0x7F800000))
        nan = tirx.reinterpret("float32", T.int32(0x7FC00000))
        value = tirx.Select(
            x < T.float32(1.17549435e-38),
            -infinity,
            _let(tirx.reinterpret("int32", x), of_bits, "int32"),
        )
        value = tirx.Select(x < infinity, value, x)  # of infinity and NaN itself
        return tirx.Select(x < T.float32(0), nan, value)

    return _let(x, checked)


def _softplus(x):
    """``log(1 + e**x)``, which is x for large ones."""
    return _let(x, lambda x: tirx.max(x, T.float32(0)) + _log(T.float32(1) + _exp(-_abs(x))))


def _mish(x):
    """``x * tanh(softplus(x))`` (arXiv 1908.08681), a quotient of polynomials in e**x."""

    def of_power(x, e):
        return _let(e * (e + T.float32(2)), lambda n: x * (n / (n + T.float32(2))))

    def of(x):
        return _let(_exp(tirx.min(x, T.float32(40))), lambda e: of_power(x, e))

    return _let(x, of)


def _abs(x):
    return tirx.max(x, -x)


def _sigmoid(x):
    return T.float32(1) / (T.float32(1) + _exp(-x))


def _tanh(x):
    return T.float32(2) * _sigmoid(T.float32(2) * x) - T.float32(1)


def _erf(x):
    """To 1.5e-7: Abramowitz, Stegun: "Handbook of Mathematical Functions", 7.1.26."""

    def of_magnitude(t, size):
        total = T.float32(1.061405429)
        for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
            total = total * t + T.float32(factor)
        return T.float32(1) - total * t * _exp(-size * size)

    size = _abs(x)
    near_one = T.float32(1) / (T.float32(1) + T.float32(0.3275911) * size)
    sign = tirx.Select(x < T.float32(0), T.float32(-1), T.float32(1))
    return sign * _let(near_one, lambda t: of_magnitude(t, size))


def _gelu(x):
    return T.float32(0.5) * x * (T.float32(1) + _erf(x * T.float32(0.70710678)))


def _gelu_tanh(x):
    inner = T.float32(0.79788456) * (x + T.float32(0.044715) * x * x * x)
    return x * _sigmoid(T.float32(2) * inner)


OPERATORS: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": tirx.max,
    "minimum": tirx.min,
    "clip": lambda x, low, high: tirx.min(tirx.max(x, low), high),
    "negative": lambda x: -x,
    "abs": _abs,
    "greater": lambda a, b: a > b,
    "where": tirx.Select,
    "exp": _exp,
    "log": _log,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "erf": _erf,
    "nn.relu": lambda x: tirx.max(x, T.float32(0)),
    "nn.leakyrelu": lambda x, alpha: tirx.max(x, T.float32(0)) + alpha * tirx.min(x, T.float32(0)),
    "nn.silu": lambda x: x * _sigmoid(x),
    "nn.gelu": _gelu,
    "nn.gelu_tanh": _gelu_tanh,
    "mish": _mish,
    "softplus": _softplus,
}
"""By the name of the Relax operator, or of several that are simplified."""
