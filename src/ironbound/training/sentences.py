"""What a validation error says to people: one sentence that names the field."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ironbound.training.options import nearest
from ironbound.training.schedule import KINDS


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a recipe in one sentence.

    Args:
        error: what pydantic raised.
        model: the recipe's class.

    Returns:
        The sentence; it names the field, and the nearest one where it is unknown.
    """
    problems = error.errors(include_url=False)
    first = problems[0]
    path = [str(part) for part in first["loc"] if part not in KINDS and part != "function-before"]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        found = _model_at(model, first["loc"][:-1])
        section = ".".join(path[:-1]) or "the recipe"
        text = f"{section} has no field {path[-1]!r}{nearest(path[-1], _names(found))}"
    elif first["type"] == "missing":
        text = f"the field {where} is missing"
    elif first["type"] in ("value_error", "schedule"):
        reason = str(first.get("ctx", {}).get("error", first["msg"]))
        text = f"{where}: {reason}" if where else reason
    else:
        text = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"recipe: {text}{more}"


def _names(model: type[BaseModel] | None) -> tuple[str, ...]:
    if model is None:
        return ()
    return tuple(field.alias or name for name, field in model.model_fields.items())


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The class of the section at a path."""
    found: type[BaseModel] | None = model
    for part in path:
        if part in KINDS:
            found = KINDS[str(part)]
        elif isinstance(part, str) and found is not None and part in found.model_fields:
            found = _section(found.model_fields[part].annotation)
    return found


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model class inside an annotation such as `tuple[Stage, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        if (found := _section(part)) is not None:
            return found
    return None
