"""Checks of values that users set: each failure is one line that says expected, got, remedy."""

import math
import re
import shlex
from collections.abc import Collection
from numbers import Integral, Real
from typing import TypeVar

Shaped = TypeVar("Shaped")


class UserError(Exception):
    """Something that the user can put right; its text is the one line that the command line shows."""


class InvalidValue(UserError, ValueError):
    """A setting outside what it may be."""


def integer(name: str, value: object, *, low: int = 1) -> int:
    """Return ``value`` as an int from ``low`` to 2^63 - 1, or raise :class:`InvalidValue`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) < 2**63:
        raise InvalidValue(f"{name}: expected a whole number of at least {low}, got {value!r}")
    return int(value)


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    low: float = -math.inf,
    below: float = math.inf,
    high: float = math.inf,
) -> float:
    """Return ``value`` as a finite float with above < value < below and low <= value <= high.

    Raises :class:`InvalidValue` otherwise, naming the bounds.
    """
    bounds = [
        text
        for bound, text in (
            (above, f"> {above:g}"),
            (low, f">= {low:g}"),
            (below, f"< {below:g}"),
            (high, f"<= {high:g}"),
        )
        if math.isfinite(bound)
    ]
    real = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    # written so that nan fails
    if not (math.isfinite(real) and above < real < below and low <= real <= high):
        wanted = "a number" + (" " + " and ".join(bounds) if bounds else "")
        raise InvalidValue(f"{name}: expected {wanted}, got {value!r}")
    return real


def choice(name: str, value: object, allowed: Collection[str]) -> str:
    """Return ``value`` if it is one of ``allowed``, or raise :class:`InvalidValue`."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidValue(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


def file_stem(name: str, value: object) -> str:
    """Return ``value`` if it is a word that can name a file, or raise :class:`InvalidValue`."""
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w.-]{0,99}", value):
        raise InvalidValue(f"{name}: expected letters, digits, . - and _, got {value!r}")
    return value


def folder(name: str, value: object) -> str:
    """Return ``value`` if it is a path, also one that reads as a whole number, or raise
    :class:`InvalidValue`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise InvalidValue(
            f"{name}: expected a directory, got {value!r}; quote a name that reads as something else, "
            f"as in '{name}=\"1e-3\"'"
        )
    return value


def override(name: str, value: object) -> str:
    """``name=value`` as it is typed in a shell, where ``value`` is a path."""
    text = str(value)
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return f"{name}={text}"
    # Hydra takes backslashes as they are but before a quote
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + (m[2] and '\\"'), text)
    return shlex.quote(f'{name}="{escaped}"')


def shaped(name: str, value: Shaped, shape: tuple[int, ...]) -> Shaped:
    """Return ``value`` if it is an array of that shape, or raise :class:`UserError`; ``name`` says which
    method of which class gave it."""
    found = getattr(value, "shape", None)
    if found is None or tuple(found) != tuple(shape):
        got = f"a {type(value).__name__}" if found is None else f"{tuple(found)}"
        raise UserError(f"{name}: expected a tensor of shape {tuple(shape)}, got {got}")
    return value


def boolean(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool, or raise :class:`InvalidValue`."""
    if not isinstance(value, bool):
        raise InvalidValue(f"{name}: expected true or false, got {value!r}")
    return value
