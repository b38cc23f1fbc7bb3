"""Checks of arguments of public functions, which raise UsageError in one sentence."""

import operator
import os
from collections.abc import Callable
from numbers import Real
from typing import Any

from dynenc.errors import UsageError


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number from `least` to `most`; a NumPy integer is one, True and 1.0 are not."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        upper = "or more" if most is None else f"to {most}"
        raise UsageError(f"{name} {value!r} is not a whole number, {least} {upper}")
    return number


def number(name: str, value: object) -> float:
    """A real number of Python or NumPy as a float; True is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UsageError(f"{name} {value!r} is not a number")
    return float(value)


def file_name(what: str, value: Any) -> str:
    """A name or path as a str; whether such a file exists is another matter."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UsageError(f"{value!r} is not a name or path of {what}")
    name = os.fspath(value)
    if not name or "\0" in name:
        raise UsageError(f"{name!r} cannot be the name of {what}")
    return name


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Patterns of file names; one by itself is taken as a sequence of one."""
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise UsageError(f"{name} {value!r} is not a list of patterns")
    return tuple(given)


def function(name: str, value: Any) -> Callable[..., Any] | None:
    """A function, or None."""
    if value is not None and not callable(value):
        raise UsageError(f"{name} {value!r} is not a function")
    checked: Callable[..., Any] | None = value
    return checked
