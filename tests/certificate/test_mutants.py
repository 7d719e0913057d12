"""Bugs planted in a copy of the checker: the tests of the checker must fail on every one of them."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ironbound.certificate.checker as checker

PREFIX = checker.__name__
SOURCE = Path(checker.__file__ or "").parent
TESTS = Path(__file__).parent

Battery = Callable[[dict[str, Any]], None]


def load(name: str, path: Path, inside: list[str] | None = None) -> ModuleType:
    """Runs a file as a module of any name."""
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=inside)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str) -> dict[str, Any]:
    """The tests of the checker, bound to a copy of it with one bug."""
    folder = tmp_path / "checker"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / file).read_text()
    assert text.count(right) == 1, f"{right!r} stands {text.count(right)} times in {file}"
    (folder / file).write_text(text.replace(right, wrong))
    for name in [name for name in sys.modules if name == PREFIX or name.startswith(f"{PREFIX}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys.modules[PREFIX.rpartition(".")[0]], "checker", None)
    load(PREFIX, folder / "__init__.py", [str(folder)])
    tests: dict[str, Any] = {}
    for name in ("test_checker_exact", "test_claims", "test_sdp_vectors", "test_property_claims"):
        monkeypatch.setitem(sys.modules, f"mutant_{name}", None)  # is taken out again
        tests[name] = vars(load(f"mutant_{name}", TESTS / f"{name}.py"))
        tests = {**tests[name], **tests}  # the first file's names count
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    return tests


def rounding(family: str = "mlp", dtype: str = "float16") -> Battery:
    return lambda tests: tests["test_no_bound_exceeds_the_exact_one"](family, dtype)


def plain(name: str, *arguments: Any) -> Battery:
    return lambda tests: tests[name](*arguments)


def of_property(name: str, *arguments: Any) -> Battery:
    """A test of claims about properties; both files have a class `Setting`."""
    return lambda tests: tests["test_property_claims"][name](tests["test_property_claims"]["Setting"](), *arguments)


def with_setting(name: str, *arguments: Any) -> Battery:
    return lambda tests: tests[name](tests["Setting"](), *arguments)


LAYERS, BOUNDS, FILES, PAYLOADS, CLAIMS = "layers.py", "bounds.py", "files.py", "payloads.py", "claims.py"
SDP, CHECKING, PROPERTIES = "semidefinite.py", "checking.py", "properties.py"
LIES = with_setting("test_targeted_lies")
OTHERS = with_setting("test_other_networks_and_other_data_are_refused")
SPLITS = plain("test_a_split_proves_more_than_its_root_and_never_too_much")
VECTORS = plain("test_verified_bounds_hold_in_rational_arithmetic", "float32")
FALSE_VECTORS = plain("test_false_vectors_are_refused")
WALK = plain("test_no_clause_is_proved_beyond_the_exact_walk", "mlp", "float16")
BOUND = plain("test_the_sum_with_the_bound_is_paid_for")
HALVES = plain("test_boxes_hold_their_ends_and_halves_cover_them", "float16")
PARTS = of_property("test_a_tree_without_a_part_proves_nothing")
MIXED = of_property("test_kinds_of_claims_do_not_mix")

BUGS: list[tuple[str, str, str, Battery]] = [
    # rounding terms
    (LAYERS, "value * (1 + self.e(n)) + (n + 2) * self.tiny", "value + (n + 2) * self.tiny", rounding()),
    (LAYERS, "value * (1 + self.e(n)) + (n + 2) * self.tiny", "value * (1 + self.e(n))",
     plain("test_an_upper_bound_covers_products_that_are_lost", "float64")),
    (LAYERS, "return (2 * n + 8) * self.u", "return 0.01 * self.u", rounding()),
    (LAYERS, "need(np.isfinite(result).all() and (result == array).all()", "need(np.isfinite(result).all()",
     plain("test_numbers_of_a_wider_format_are_refused")),
    (BOUNDS, "error + a.over(rows.magnitude(self.charge[n]), node.size) + self.slack[n]", "error + self.slack[n]",
     rounding("mlp", "float64")),
    (BOUNDS, "error + a.over(rows.magnitude(self.charge[n]), node.size) + self.slack[n]",
     "error + a.over(rows.magnitude(self.charge[n]), node.size)",
     plain("test_lost_coefficients_of_large_values_are_paid_for")),
    (BOUNDS, "error = error + len(parts) * a.over(weight @ self.rounding[n], node.size + len(parts))", "pass",
     plain("test_sums_of_many_readers_are_paid_for")),
    (BOUNDS, "error = error + a.e(0) * (abs(low) + abs(high))\n        error", "pass\n        error",
     plain("test_every_addition_to_the_running_value_is_paid_for")),
    (BOUNDS, "return np.nextafter(low - error, -a.top), np.nextafter(high + error, a.top)",
     "return np.nextafter(low, -a.top), np.nextafter(high, a.top)", rounding()),
    (BOUNDS, "self.a.over(np.maximum((1 - chord) * high, -chord * low), 4)",
     "np.maximum((1 - chord) * high, -chord * low)", rounding()),
    (BOUNDS, "+ a.over(a.e(count) * at_middle, 1) + noise + underflow", "+ noise + underflow", rounding("dilated")),
    (BOUNDS, "if float(self.eps) < eps:", "if False:", plain("test_regions_cover_their_balls", "float16")),
    (BOUNDS, "np.sqrt(self.a.over((coef * coef).sum(1), len(self.x)))", "0.9999 * np.sqrt((coef * coef).sum(1))",
     rounding("mlp", "float32")),
    # the network as executed
    (BOUNDS, "self.a.over(rounding + noise, 1)", "self.a.over(rounding, 1)", rounding("mlp", "float64")),
    (BOUNDS, "+ a.over(a.e(count) * at_middle, 1) + noise + underflow",
     "+ a.over(a.e(count) * at_middle, 1) + underflow", rounding("mlp", "float64")),
    (BOUNDS, "+ node.extra) * 2.0**-24", ") * 2.0**-24", rounding("mlp", "float64")),
    (BOUNDS, "+ node.extra) * 2.0**-24", "+ node.extra) * 2.0**-25", rounding("mlp", "float64")),
    (BOUNDS, "* most, 1) + flushed", "* most, 1)", plain("test_noise_covers_runs_that_flush_to_zero")),
    (BOUNDS, "(part > 0).astype", "(part > 0.5).astype", rounding("mlp", "float64")),
    # relaxations and layers
    (BOUNDS, "on, closed = low >= 0, (low >= 0)", "on, closed = low + high >= 0, (low + high >= 0)", rounding()),
    (BOUNDS, "over * rows.at(lower) + under * rows.at(upper)", "over * rows.at(upper) + under * rows.at(lower)",
     rounding("mlp", "float32")),
    (LAYERS, "abs(bias) + abs(mean * factor), None, 16", "0 * abs(bias) + 0 * mean, None, 16", rounding("line")),
    (LAYERS, "(at >= 0) & (at < n)", "(at >= 0)", rounding("conv")),
    (LAYERS, "line.shape[1] if groups == 1 else 0", "line.shape[1]", rounding("reshaped")),
    (LAYERS, "rows.dense(self.size) / self.divisor", "rows.dense(self.size)", rounding("norms")),
    # claims, files, payloads
    (CHECKING, "(margins > one.margin).all()", "(margins >= one.margin).all()", LIES),
    (CHECKING, "(margins > one.margin).all()", "(margins > one.margin).any()", LIES),
    (CHECKING, "need(file.network == self.network_hash", "need(True", OTHERS),
    (CHECKING, "need(file.data == self.data_hash", "need(True", OTHERS),
    (CHECKING, 'or self.data["labels"][one.index] != one.label', "or False",
     with_setting("test_labels_bind_and_predictions_need_none")),
    (CHECKING, 'if mode == "float32" and not self.single:', "if False:",
     with_setting("test_float32_runs_cost_margin_and_need_a_float32_network")),
    (PAYLOADS, "open_sides += [{**signs, column: -1}, {**signs, column: 1}]",
     "open_sides += [{**signs, column: 1}]", LIES),
    (PAYLOADS, "lowest = np.minimum(lowest, ", "lowest = np.maximum(-9.0 if lowest == math.inf else lowest, ", SPLITS),
    (PAYLOADS, "(betas >= 0).all()", "True", LIES),
    (PAYLOADS, "need(column not in signs", "need(True", LIES),
    (PAYLOADS, "-sign * self.analysis.a.exact(beta)", "sign * self.analysis.a.exact(beta)", SPLITS),
    (PAYLOADS, "(sign > 0, sign > 0, 0)", "(sign < 0, sign < 0, 0)", SPLITS),
    (PAYLOADS, 'need(self.at == len(self.data), "bytes follow a payload")', "pass", LIES),
    (CLAIMS, "all(a < b for a, b in", "all(True for a, b in", with_setting("test_records_stand_in_order")),
    (FILES, "{name} {arrays[name].dtype.str}", "{arrays[name].dtype.str}",
     with_setting("test_the_hash_covers_names_types_and_shapes")),
    # semidefinite vectors
    (SDP, "a.over(lost, sizes.size)", "0 * lost", VECTORS),
    (SDP, "need((weights > 0).all() and", "need(", FALSE_VECTORS),
    (SDP, "np.linalg.cholesky(matrix)", "np.linalg.eigvalsh(matrix)", FALSE_VECTORS),
    (SDP, "through / 2)", "through / 4)", VECTORS),
    # properties
    (PROPERTIES, "self.radius = a.over(np.maximum(high - self.middle, self.middle - low), 1)",
     "self.radius = np.minimum(high - self.middle, self.middle - low)", HALVES),
    (PROPERTIES, "self.radius = a.over(np.maximum(high - self.middle, self.middle - low), 1)",
     "self.radius = np.maximum(high - self.middle, self.middle - low)", HALVES),
    (PROPERTIES, "below[element] = above[element] = np.clip(ends[0] / 2 + ends[1] / 2, *ends)",
     "below[element], above[element] = ends[0] / 2 + ends[1] / 2 - (ends[1] - ends[0]) / 4, ends[1]", HALVES),
    (PROPERTIES, "best = analysis.output(rows, base)", "best = analysis.output(rows) + base", BOUND),
    (PROPERTIES, "here = np.flatnonzero(self.clause == number)", "here = np.flatnonzero(self.clause >= number)",
     of_property("test_rows_of_other_clauses_do_not_help")),
    (PROPERTIES, "base = -self.bounds[here]", "base = self.bounds[here]",
     of_property("test_rows_of_other_clauses_do_not_help")),
    (PROPERTIES, "np.append(self.outputs[here], self.inputs[here], 1), base",
     "np.append(self.outputs[here], 0 * self.inputs[here], 1), base",
     plain("test_what_is_proved_is_true_and_no_more_is_accepted", 2)),
    (PROPERTIES, "[(*above, depth + 1), (*below, depth + 1)]", "[(*below, depth + 1)]", PARTS),
    (PROPERTIES, "[(*above, depth + 1), (*below, depth + 1)]", "[(*below, depth + 1), (*below, depth + 1)]",
     plain("test_each_half_counts")),
    (PROPERTIES, "lowest = min(lowest, highest", "lowest = max(-9.0, highest",
     plain("test_what_is_proved_is_true_and_no_more_is_accepted", 2)),
    (PROPERTIES, "return None if least > one.margin", "return None if least >= one.margin",
     plain("test_what_is_proved_is_true_and_no_more_is_accepted", 2)),
    (PROPERTIES, "np.where(np.isnan(values), -math.inf, values)", "np.where(np.isnan(values), math.inf, values)",
     of_property("test_overflow_is_never_a_proof")),
    (PROPERTIES, "self.lower[self.case[number]] > self.upper[self.case[number]]",
     "self.lower[self.case[number]] >= self.upper[self.case[number]]",
     of_property("test_a_box_of_one_point_is_not_empty")),
    (PROPERTIES, 'if mode == "float32":', "if False:", of_property("test_float32_runs_read_rounded_inputs")),
    (PROPERTIES, "depth >= DEPTH_LIMIT", "False", of_property("test_trees_that_are_too_large_are_refused")),
    (PROPERTIES, "        data.end()\n", "", PARTS),
    (PROPERTIES, "Improvement(analysis, rows, base)", "Improvement(analysis, rows)",
     of_property("test_trees_of_signs_and_slopes_speak_of_a_row")),
    (CHECKING, 'answers.get(number, "absent")', "answers.get(number)",
     of_property("test_a_clause_without_a_certificate_is_missing")),
    (CHECKING, ' or norm == "box":', ":", MIXED),
    (CHECKING, 'one.subject != PROPERTY or norm != "box"', "one.subject != PROPERTY", MIXED),
    (CHECKING, 'one.subject != PROPERTY or norm != "box"', 'norm != "box"', MIXED),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BUGS)))
def test_every_planted_bug_is_caught(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, right, wrong, battery = BUGS[number]
    tests = planted(tmp_path, monkeypatch, file, right, wrong)
    with pytest.raises((AssertionError, TypeError, ValueError, RuntimeWarning, pytest.fail.Exception)):
        battery(tests)


def test_without_a_bug_the_same_tests_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = planted(tmp_path, monkeypatch, LAYERS, "class Rows:", "class Rows:")
    for battery in (rounding(), LIES, OTHERS, FALSE_VECTORS, VECTORS):
        battery(tests)
