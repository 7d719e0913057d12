"""The recipes of experiments/sdp are what they say; its records obey the order of the bounds; its figures are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.sdp import figures
from experiments.sdp.common import HERE
from experiments.sdp.networks import NAMES
from ironbound.training import Recipe

RECORDS = sorted((HERE / "results").glob("network_*_[0-9].json"))


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_of_the_papers_network(name: str) -> None:
    recipe = Recipe.read(HERE / "recipes" / f"{name}.toml")
    assert recipe.model.name == "two-layer" and recipe.data.name == "mnist" and recipe.region.eps == 0.1
    assert recipe.data.validation == 0 and recipe.run.workers == 1
    assert recipe.optimizer.schedule(recipe.run.epochs) == pytest.approx(0.01)  # arrived when the run ends


def test_every_recipe_has_a_name() -> None:
    assert {path.stem for path in (HERE / "recipes").glob("*.toml")} == set(NAMES)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_obey_the_order_of_the_bounds(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))["results"]
    curves = found["curves"]
    for name in ("dual", "spectral", "frobenius"):
        assert curves[name] == sorted(curves[name]) and curves[name][0] == found["per_cent_error"]["clean"]
    for tight, loose in (("dual", "spectral"), ("spectral", "frobenius")):
        assert all(one <= other for one, other in zip(curves[tight], curves[loose], strict=True))
    if "attacked" in found:
        some = found["attacked"]
        for eps, wrong in zip(some["eps"], some["pgd, 5 restarts"], strict=True):
            assert some["curves"]["dual"][0] <= wrong <= some["curves"]["dual"][some["curves"]["eps"].index(eps)]
    if "pgd, 5 restarts" in found["per_cent_error"]:
        whole = found["per_cent_error"]["pgd, 5 restarts"]
        assert found["per_cent_error"]["clean"] <= whole <= found["per_cent_error"]["sdp"]
        assert whole <= found["per_cent_error"]["dual"]
    for row in found.get("trace", {}).get("rows", []):
        assert row[1] >= row[2]  # the vectors at hand are no better than solved ones


def record(sdp: float) -> dict:
    grid = [0.0, 0.05, 0.1]
    curves = {"eps": grid, "dual": [4.0, 10.0, sdp], "spectral": [4.0, 50.0, 100.0], "frobenius": [4.0, 100.0, 100.0]}
    attacks = {name: [5.0, 9.0] for name in ("pgd, 5 restarts", "fgsm", "carlini_wagner")}
    return {
        "per_cent_error": {"clean": 4.0, "sdp": sdp, "dual": 97.5, "pgd, 5 restarts": 15.25},
        "curves": curves,
        "attacked": {"images": 10, "eps": [0.05, 0.1], "curves": curves, **attacks},
        "trace": {"rows": [[1, 60.0, 50.0], [2, 40.0, 35.0]]},
    }


def test_figures_are_drawn_and_table_1_holds_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, name in enumerate(NAMES):
        (tmp_path / f"network_{name}_0.json").write_text(json.dumps({"results": record(20.0 + place)}))
    figures.main(["--results", str(tmp_path), "--out", str(tmp_path)])
    for number in (2, 3, 4):
        assert (tmp_path / f"figure{number}.png").read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| SDP-NN | 4.00 | 15.25 (15) | 24.00 (35) | 97.50 (99) |"
    assert lines[3] == "| LP-NN | 4.00 | 15.25 (22) | 25.00 (93) | 97.50 (26) |"
