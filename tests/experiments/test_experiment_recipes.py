"""Every recipe can be read, names what exists, and belongs to a row; the published figures are consistent."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.training import rows
from ironbound import data, models
from ironbound.training import Recipe
from ironbound.training.artefact import network

RECIPES = sorted((rows.HERE / "recipes").glob("*.toml"))
ROWS = rows.by_name()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_names_what_exists(path: Path) -> None:
    recipe = Recipe.read(path)
    assert recipe.title
    assert recipe.model.name in models.names()
    assert recipe.data.name in data.names()
    assert recipe.model.factory is None and recipe.model.weights is None and recipe.data.root is None
    assert recipe.data.validation == 0  # recorded runs train on everything


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_ends_at_the_radius_that_is_certified(path: Path) -> None:
    recipe = Recipe.read(path)
    plan = recipe.plans()[-1]
    if "hinge" in plan.loss.name or plan.loss.name in ("standard", "pgd"):
        return
    assert plan.eps(plan.epochs) == pytest.approx(recipe.region.eps, rel=1e-9)
    assert plan.eps.settled(plan.epochs)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_row_changes_fit_its_recipe(row: rows.Row) -> None:
    recipe = row.read("run.seed=1")
    assert recipe.run.seed == 1
    inputs = {"cifar10": (3, 32), "svhn": (3, 32), "mnist": (1, 28), "fashion-mnist": (1, 28)}
    if recipe.data.name in inputs and recipe.model.name == "small":
        channels, size = inputs[recipe.data.name]
        assert recipe.model.options.get("in_channels", 1) == channels
        assert recipe.model.options.get("size", 28) == size


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_published_figures_are_in_order(row: rows.Row) -> None:
    given = [value for value in (row.clean, row.pgd, row.certified) if value is not None]
    assert given == sorted(given) and all(0 <= value <= 100 for value in given)
    assert (row.certified is None) == (row.by == "")


def test_every_recipe_has_a_row() -> None:
    assert {path.stem for path in RECIPES} == {row.recipe for row in ROWS.values()}


def test_har_network_reads_raw_windows() -> None:
    import torch

    assert network(ROWS["har-dual"].read().model)(torch.zeros(2, 9, 128)).shape == (2, 6)
