"""Checks of numeric options, which become Python's own `int` and `float`.

The same option arrives as an integer, a float, or a NumPy scalar: a browser sends the temperature
2.0 as 2, and other programs send 5.0 where a whole number is meant. Libraries are less tolerant:
transformers refuses the temperature 2.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from vqa_app.errors import UsageError

LARGEST = (1 << 53) - 1
"""Largest whole number of an option without a limit of its own. Floats hold all smaller ones."""


def checked_integer(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number as an `int`, also if it is a float such as 5.0.

    Args:
        name: Name of the option, for the message.
        value: What was given for it.
        low: The smallest number allowed.
        high: The largest number allowed.

    Raises:
        UsageError: The value is out of range, or no whole number.
    """
    number = _plain_number(value)
    whole = isinstance(number, int) or (number is not None and number.is_integer())
    if number is None or not whole or not low <= number <= high:
        raise UsageError(f"{name} is {shown(value)}.", f"Give a whole number from {low} to {high}.")
    return int(number)


def checked_float(name: str, value: Any, low: float, high: float) -> float:
    """Return a number as a `float`; see `checked_integer`. NaN is never in range."""
    number = _plain_number(value)
    if number is None or not low <= number <= high:
        raise UsageError(
            f"{name} is {shown(value)}.",
            f"Give a number from {_decimal(low)} to {_decimal(high)}.",
        )
    return float(number)


def _plain_number(value: Any) -> int | float | None:
    """Return a number as Python's own type; None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # a fraction above 1e308
        return None


def shown(value: Any, most: int = 60) -> str:
    """Return a value for a message: numbers without their type, text in quotes."""
    try:
        text = str(value) if isinstance(value, Real) or hasattr(value, "dtype") else repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."


def _decimal(value: float) -> str:
    """Return a number without an exponent or trailing zeros."""
    text = f"{value:.10f}"
    return text.rstrip("0").rstrip(".")
