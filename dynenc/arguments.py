"""Checks of the arguments of public functions; they raise UsageError."""

import operator
import os
from collections.abc import Callable
from numbers import Real
from typing import Any

from dynenc.errors import UsageError

StrPath = str | os.PathLike[str]  # a path, or another name of a file


def checked_integer(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """An integer from `least` to `most`, of Python or NumPy; not True, and not 1.0."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        upper = "or more" if most is None else f"to {most}"
        raise UsageError(f"{name} must be an integer, {least} {upper}, not {value!r}")
    return number


def checked_number(name: str, value: object) -> float:
    """A real number of Python or NumPy as a float; not True."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UsageError(f"{name} must be a number, not {value!r}")
    try:
        return float(value)
    except OverflowError as exc:
        raise UsageError(f"{name} is too large a number") from exc


def checked_name(what: str, value: Any) -> str:
    """A name or path as a str; the file need not exist."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UsageError(f"{value!r} is not the name or path of {what}")
    name = os.fspath(value)
    if not name or "\0" in name:
        raise UsageError(f"{name!r} cannot be the name of {what}")
    return name


def checked_patterns(name: str, value: Any) -> tuple[str, ...]:
    """File name patterns as a tuple; a single string becomes a tuple of one."""
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise UsageError(f"{name} must be a list of patterns, not {value!r}")
    return tuple(given)


def checked_callback(name: str, value: Any) -> Callable[..., Any] | None:
    """A function, or None."""
    if value is not None and not callable(value):
        raise UsageError(f"{name} must be a function, not {value!r}")
    checked: Callable[..., Any] | None = value
    return checked
