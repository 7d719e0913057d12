"""TOML for recipes: reading with one sentence per error, overrides, writing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ironbound.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


def read(path: Path) -> dict[str, Any]:
    """Reads a file.

    Args:
        path: of the file.

    Returns:
        Its tables as plain data.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the recipe {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} is not TOML: {error}.") from error


def override(values: dict[str, Any], text: str) -> None:
    """Changes one value in place.

    Args:
        values: plain data of a recipe.
        text: "section.field=value"; the value is TOML, a bare word is a string, `none` unsets the field. A number in
            the path counts the entries of a list from 0.

    Raises:
        InputError: not of this form, or a number that no list entry has.
    """
    path, equals, value = text.partition("=")
    parts = [part.strip() for part in path.split(".")]
    if not equals or not all(parts):
        raise InputError(f"an override must look like section.field=value, got {text!r}.")
    place: Any = values
    for part in parts[:-1]:
        place = _entry(place, part, text) if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, (dict, list)):
            raise InputError(f"the override {text!r} leads through {part!r}, which is no section.")
    new = _value(value.strip())
    if isinstance(place, list):
        _entry(place, parts[-1], text)
        place[int(parts[-1])] = new
    elif new is None:
        place.pop(parts[-1], None)
    else:
        place[parts[-1]] = new


def _entry(entries: list[Any], part: str, text: str) -> Any:
    if not part.isdigit() or int(part) >= len(entries):
        raise InputError(f"the override {text!r} needs a number from 0 to {len(entries) - 1} in place of {part!r}.")
    return entries[int(part)]


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def write(values: Mapping[str, Any]) -> str:
    """Plain data as TOML.

    Args:
        values: strings, finite numbers, booleans, lists and mappings with string keys; no None.

    Returns:
        The text; `tomllib.loads` gives the same data again.
    """
    return "\n".join(_table(values, ())).strip() + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(name)} = {_inline(value)}" for name, value in values.items() if not _is_section(value, path)]
    for name, value in values.items():
        if not _is_section(value, path):
            continue
        title = ".".join(_key(part) for part in (*path, name))
        if isinstance(value, Mapping):
            lines += ["", f"[{title}]", *_table(value, (*path, name))]
        else:
            for entry in value:
                lines += ["", f"[[{title}]]", *_table(entry, (*path, name))]
    return lines


def _is_section(value: Any, path: tuple[str, ...]) -> bool:
    """Sections are the tables of the first level; what lies deeper is written in line."""
    if path:
        return False
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
    )


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_inline(entry)}" for name, entry in value.items()) + "}"
    return "[" + ", ".join(_inline(entry) for entry in value) + "]"


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    bare = name and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in name)
    return name if bare else _string(name)
