"""Recipes: TOML there and back, what is refused and in which words, overrides, stages, the reference in the docs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironbound.errors import InputError
from ironbound.training import Recipe, simple, toml
from ironbound.training.explain import BEGIN, END, markdown, text
from ironbound.training.options import option_names, table
from ironbound.training.recipe import Section

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = """
title = "small, mixed, then exact"
[model]
name = "small"
options = {in_channels = 3, size = 32}
mean = [0.5, 0.5, 0.5]
std = [0.2, 0.2, 0.2]
[data]
name = "cifar10"
validation = 0.1
augment = "crop-flip"
[region]
eps = 0.01
clip = [0, 1]
[loss]
name = "mtl-ibp"
alpha = {kind = "linear", from = 1, to = 0.05, start = 1, end = 4}
steps = 1
eps = {kind = "smooth", from = 0, to = 0.01, start = 1, end = 10}
[[regularizer]]
name = "tightness-r"
weight = 0.1
method = "dual"
[optimizer]
lr = 5e-4
schedule = {kind = "stepped", values = [1, 0.2], at = [12]}
[run]
epochs = 15
[[stage]]
name = "mix"
[[stage]]
name = "exact"
epochs = 2
regularizer = []
loss = {name = "robust"}
optimizer = {name = "adam", lr = 1e-4}
sampling = {easy = "skip"}
"""


def recipe(tmp_path: Path, *overrides: str, text: str = TEXT) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return Recipe.read(path, overrides)


def test_a_recipe_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    first = recipe(tmp_path)
    again = recipe(tmp_path, text=first.to_toml())
    assert again == first and again.digest() == first.digest()
    assert again.to_toml() == first.to_toml()
    assert recipe(tmp_path, text="") == Recipe()


def test_stages_inherit_what_they_do_not_replace(tmp_path: Path) -> None:
    mix, exact = recipe(tmp_path).plans()
    assert (mix.name, mix.epochs, mix.loss.name, len(mix.regularizers)) == ("mix", 15, "mtl-ibp", 1)
    assert mix.loss.options(0) == {"alpha": 1, "steps": 1} and mix.loss.options(4)["alpha"] == 0.05
    assert mix.eps(0) == 0 and mix.eps(10) == 0.01 and mix.sampling.easy == "keep"
    assert (exact.name, exact.epochs, exact.loss.name, exact.regularizers) == ("exact", 2, "robust", ())
    assert exact.eps(0) == 0.01 and exact.sampling.easy == "skip" and exact.optimizer.lr == 1e-4
    assert exact.optimizer.schedule(1) == 1  # a section of a stage is whole: nothing of the recipe's own is mixed in


def test_overrides(tmp_path: Path) -> None:
    changed = recipe(
        tmp_path,
        "loss.name=interval",
        "loss.alpha=none",
        "loss.steps=none",
        "loss.kappa={kind='linear', from=1, to=0.5, end=2}",
        "run.seed=3",
        "stage.1.epochs=4",
        "regularizer.0.weight=0.25",
        "region.clip=none",
        "data.root=some where",
    )
    assert changed.loss.options(1) == {"kappa": 0.75} and changed.run.seed == 3 and changed.stage[1].epochs == 4
    assert changed.regularizer[0].weight(0) == 0.25 and changed.region.clip is None
    assert changed.data.root == "some where"
    assert Recipe().override("run.epochs=3", "title=new") == Recipe(run={"epochs": 3}, title="new")


def test_the_digest_is_that_of_what_decides_the_result(tmp_path: Path) -> None:
    first = recipe(tmp_path)
    for same in ("title=other", "data.root=elsewhere", "run.tensorboard=true", "run.checkpoint_every=2"):
        assert recipe(tmp_path, same).digest() == first.digest()
    for other in ("run.seed=1", "loss.alpha=0.3", "stage.0.epochs=3", "data.validation=0", "run.workers=2"):
        assert recipe(tmp_path, other).digest() != first.digest()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.epoch=3", r"run has no field 'epoch'; did you mean 'epochs'"),
        ("los.name=pgd", r"the recipe has no field 'los'; did you mean 'loss'"),
        ("stage.1.epohcs=3", r"stage\.1 has no field 'epohcs'; did you mean 'epochs'"),
        ("loss.alhpa=3", r"has no option 'alhpa'; did you mean 'alpha'"),
        ("loss.name=mtl_ibp", r"'mtl_ibp' is not known; did you mean 'mtl-ibp'"),
        ("regularizer.0.name=r", r"regularizer\.0: regularizer 'r' is not known"),
        ("regularizer.0.weight=none", r"regularizer\.0\.weight is missing"),
        ("run.epochs=0", r"run\.epochs: .*greater than or equal to 1, got 0"),
        ("run.epochs=many", r"run\.epochs: .*integer.*'many'"),
        ("region.norm=l7", r"region\.norm: .*'linf'"),
        ("region.eps=nan", r"region\.eps"),
        ("loss.eps=-1", r"eps must not be negative"),
        ("loss.eps={kind='linear', from=0, to=1, end=2, mid=3}", r"loss\.eps has no field 'mid'"),
        ("loss.alpha={kind='lin', from=0}", r"loss: .*kind = constant, linear"),
        ("optimizer.schedule=fast", r"optimizer\.schedule: must be a number, or a table with kind"),
        ("optimizer.lr=0", r"optimizer\.lr"),
        ("model.factory=a.py:f", r"model: name an architecture or a factory, not both"),
        ("model.std=none", r"model: give mean and std together"),
        ("data.validation=1", r"data\.validation"),
        ("evaluation.methods=['duel']", r"evaluation: method 'duel' is not known; did you mean 'dual'"),
        ("run", r"section\.field=value"),
        ("run.=3", r"section\.field=value"),
        ("title.text=3", r"leads through 'title'|title"),
        ("stage.7.epochs=3", r"a number from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        recipe(tmp_path, override)
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Recipe.read(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="is not TOML"):
        recipe(tmp_path, text="run = [")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not TOML"):
        Recipe.read(tmp_path / "bytes.toml")


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValueError):
        Recipe().run.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES, max_size=4))
def test_toml_is_written_as_it_is_read(values: dict) -> None:
    assert tomllib.loads(toml.write(values)) == values


def every_section(kind: type) -> set[type]:
    return {kind, *(part for below in kind.__subclasses__() for part in every_section(below))}


def test_every_field_is_documented() -> None:
    for section in every_section(Section):
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_the_reference_in_the_docs_is_made_from_the_fields() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    # python -m ironbound.training.explain docs/training.md
    assert docs.split(BEGIN)[1].split(END)[0].strip() == markdown().strip()


def test_the_explanation_names_every_field_and_option() -> None:
    shown = text()
    for section in every_section(Section) - {Section}:
        assert all((field.alias or name) in shown for name, field in section.model_fields.items())
    for kind in ("loss", "regularizer"):
        for name, function in table(kind).items():
            assert name in shown and all(option in shown for option in option_names(function))


def test_simple_recipes() -> None:
    made = simple("mtl-ibp", eps=0.2, epochs=6, ramp=(1, 3), alpha=0.1, norm="l2", clip=(0, 1), seed=5)
    (plan,) = made.plans()
    assert plan.loss.options(0) == {"alpha": 0.1} and [plan.eps(t) for t in (0, 1, 2, 3)] == [0, 0, 0.1, 0.2]
    assert [plan.optimizer.schedule(t) for t in (0, 3, 4.5, 6)] == [1, 1, 0.5, 0]
    assert (made.region.norm, made.region.clip, made.run.seed) == ("l2", (0, 1), 5)


def test_the_example_in_the_docs_is_a_recipe(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    made = recipe(tmp_path, text=docs.split("```toml\n")[1].split("```")[0])
    assert [plan.name for plan in made.plans()] == ["mix", "exact"] and made.plans()[1].eps(0) == made.region.eps
