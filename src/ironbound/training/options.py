"""Options of losses and regularizers as a recipe gives them: which there are, and their values at a time."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from ironbound.training.schedule import Schedule

_GIVEN = ("model", "region", "labels", "generator", "weights")  # what the loop passes by itself
_SCHEDULE = TypeAdapter(Schedule)


def table(kind: str) -> Mapping[str, Callable[..., Any]]:
    """The functions that a recipe knows by name.

    Args:
        kind: "loss" or "regularizer".

    Returns:
        Name → function.
    """
    from ironbound.training.losses import LOSSES, REGULARIZERS

    return LOSSES if kind == "loss" else REGULARIZERS


@cache
def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of all parameters of a function."""
    return tuple(inspect.signature(function).parameters)


def option_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters that a recipe may set."""
    return tuple(name for name in parameters(function) if name not in _GIVEN)


def nearest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """The end of a sentence on an unknown word: the known one that is near, else all of them."""
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known) or 'none'}"


def check_options(kind: str, name: str, options: Mapping[str, Any]) -> None:
    """Checks name and options of a loss or regularizer.

    Args:
        kind: "loss" or "regularizer".
        name: as the recipe says.
        options: likewise.

    Raises:
        ValueError: no such function, no such option, or a schedule that does not fit.
    """
    functions = table(kind)
    if name not in functions:
        raise ValueError(f"{kind} {name!r} is not known{nearest(name, tuple(functions))}")
    known = option_names(functions[name])
    for option in options:
        if option not in known:
            raise ValueError(f"the {kind} {name!r} has no option {option!r}{nearest(option, known)}")
    parsed_options(options)


def parsed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their tables read as schedules."""
    return {
        name: _SCHEDULE.validate_python(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
    }


def values_at(options: Mapping[str, Any], time: float) -> dict[str, Any]:
    """The options at a time in epochs."""
    return {name: value(time) if callable(value) else value for name, value in options.items()}
