"""The rows of the tables: recipe, changes to it, and the published figures beside which ours stand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ironbound.training import Recipe, toml

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """One row: what is trained, and what the papers found.

    Attributes:
        name: of the row and its results.
        group: title of its table.
        recipe: name of the file in `recipes/`, without suffix.
        changes: to the recipe, each "section.field=value".
        gpu: too long for two cores.
        clean, pgd, certified: published errors in percent, where there are any.
        by: the bound behind `certified`.
        search: seconds of branch and bound for an image, in "best of all"; 0: none, where too many images are open.
    """

    name: str
    group: str
    recipe: str
    changes: tuple[str, ...] = ()
    gpu: bool = False
    clean: float | None = None
    pgd: float | None = None
    certified: float | None = None
    by: str = ""
    search: float = 60.0

    @property
    def path(self) -> Path:
        """The recipe's file."""
        return HERE / "recipes" / f"{self.recipe}.toml"

    def read(self, *changes: str) -> Recipe:
        """The recipe with the row's changes, and then others.

        Args:
            *changes: each "section.field=value".

        Returns:
            The recipe.
        """
        return Recipe.read(self.path, [*self.changes, *changes])


@dataclass(frozen=True)
class Group:
    """A table.

    Attributes:
        title: of the table.
        note: what its reader must know.
        rows: by name.
    """

    title: str
    note: str
    rows: dict[str, Row]


def read(path: Path = HERE / "published.toml") -> list[Group]:
    """Reads the tables.

    Args:
        path: of the file.

    Returns:
        The tables in order.
    """
    groups = toml.read(path)["group"]
    return [
        Group(group["title"], group.get("note", ""), {n: _row(n, group["title"], v) for n, v in group["rows"].items()})
        for group in groups
    ]


def by_name() -> dict[str, Row]:
    """All rows of all tables."""
    return {name: row for group in read() for name, row in group.rows.items()}


def _row(name: str, group: str, values: dict[str, Any]) -> Row:
    values = dict(values)
    return Row(name, group, values.pop("recipe", name), tuple(values.pop("set", ())), **values)
