"""The reference of recipes, made from the fields' own descriptions.

python -m ironbound.training.explain docs/training.md    # writes it again into the document
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ironbound.training.options import option_names, table
from ironbound.training.recipe import Recipe
from ironbound.training.schedule import KINDS, Constant
from ironbound.training.toml import _inline

BEGIN, END = "<!-- reference: begin -->\n", "<!-- reference: end -->"
Row = tuple[str, str, str, str]
"""Field, type, default, description."""


def sections() -> Iterator[tuple[str, str, list[Row]]]:
    """Title, description and rows of each section, as they stand in a file, and of each kind of schedule."""
    top = [_row(name, field) for name, field in Recipe.model_fields.items() if _section(field.annotation) is None]
    yield "", "Fields before the first section.", top
    for name, field in Recipe.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            many = get_origin(field.annotation) is tuple
            yield f"[[{name}]]" if many else f"[{name}]", _first_line(section), _rows(section)
    for name, kind in KINDS.items():
        yield f'{{kind = "{name}"}}', _first_line(kind), [row for row in _rows(kind) if row[0] != "kind"]


def functions(kind: str) -> list[tuple[str, str, str]]:
    """Name, options with their defaults, and first line of the documentation of each loss or regularizer."""
    return [(name, ", ".join(_options(function)), _first_line(function)) for name, function in table(kind).items()]


def text() -> str:
    """The reference for a terminal."""
    lines = []
    for title, about, rows in sections():
        lines += [f"{title or 'At the top'}: {about}"]
        for name, kind, default, description in rows:
            lines += [f"  {name} ({kind}{'; default ' + default if default else '; required'})", f"      {description}"]
        lines.append("")
    for kind in ("loss", "regularizer"):
        lines.append(f"Names of a {kind} and their options:")
        for name, options, about in functions(kind):
            lines += [f"  {name}{f' ({options})' if options else ''}", f"      {about}"]
        lines.append("")
    return "\n".join(lines)


def markdown() -> str:
    """The reference for docs/training.md."""
    lines = []
    for title, about, rows in sections():
        lines += [f"### {f'`{title}`' if title else 'Top'}", "", about, "", "| field | type | default | meaning |"]
        lines += ["|---|---|---|---|"]
        for name, kind, default, description in rows:
            lines.append(f"| `{name}` | {kind} | {f'`{default}`' if default else 'required'} | {description} |")
        lines.append("")
    for kind, title in (("loss", "Losses"), ("regularizer", "Regularizers")):
        lines += [f"### {title}", "", "| name | options | |", "|---|---|---|"]
        for name, options, about in functions(kind):
            lines.append(f"| `{name}` | {options or 'none'} | {about} |")
        lines.append("")
    return "\n".join(lines).replace("|  |", "| |").rstrip() + "\n"


def _rows(section: type[BaseModel]) -> list[Row]:
    return [_row(field.alias or name, field) for name, field in section.model_fields.items()]


def _row(name: str, field: FieldInfo) -> Row:
    default = "" if field.is_required() else _default(field.default)
    return name, _type(field.annotation), default, field.description or ""


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Constant):
        return _inline(value.value)
    return _inline(list(value) if isinstance(value, tuple) else value)


def _type(annotation: Any) -> str:
    """The type in words."""
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not type(None)]
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        if Constant in [_bare(part) for part in parts]:
            return "number or schedule"
        return " or ".join(_type(part) for part in parts)
    if origin is dict:
        return "table"
    if origin is tuple:
        section = _section(annotation)
        return "list of tables" if section else "list of " + ("texts" if parts[0] is str else "numbers")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}[annotation]


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _section(annotation: Any) -> type[BaseModel] | None:
    """The class of a field that is a section or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    parts = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(parts[0], type) and issubclass(parts[0], BaseModel):
        return parts[0]
    return None


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _options(function: Callable[..., Any]) -> list[str]:
    known = inspect.signature(function).parameters
    shown = []
    for name in option_names(function):
        default = known[name].default if name in known else inspect.Parameter.empty
        value = "none" if default is None else default
        shown.append(name if default is inspect.Parameter.empty else f"{name} = {value}")
    return shown


if __name__ == "__main__":
    document = Path(sys.argv[1])
    before, rest = document.read_text(encoding="utf-8").split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{markdown()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
