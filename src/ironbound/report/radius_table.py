"""The summary of certified radii as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ironbound.radius_result import QUANTILES, Radius
from ironbound.report.table import arithmetic_words, clip_words, data_words, seconds_line, settings_grid, show


def print_radius(result: Radius, eps: Sequence[float] = (), console: Console | None = None) -> None:
    """Prints settings, means and quantiles of the radii, and the shares at a few ε, on stdout.

    Args:
        result: the radii.
        eps: those ε; none: chosen around the median.
        console: another place to print to.
    """
    summary = result.summary(eps)
    wrong = "" if result.settings["detection"] else f"{summary['misclassified']} misclassified (radius 0); "
    counted = Text(f"{wrong}{summary['evaluations']:.1f} evaluations of the margins per example")
    parts = [settings_grid(_head(result)), _radii(summary), _shares(summary), counted, seconds_line(result.seconds)]
    show(parts, console)


def _head(result: Radius) -> list[tuple[str, str]]:
    settings = result.settings
    network = f"{settings.get('network', '')} (sha256 {settings['network_sha256'][:12]}…)".strip()
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    asked = "the network's own answer" if settings["detection"] else "the label"
    return [
        ("data", data_words(settings, len(result))),
        ("network", network),
        ("region", f"largest ε ({settings['unit']}), norm {settings['norm']}, {clip_words(settings['clip'])}"),
        ("keeps", asked),
        ("method", f"{settings['method']}, to {settings['tolerance']:g} of ε"),
        ("proofs for", arithmetic_words(result.summary()["arithmetic"])),
        ("attack", _attack(settings["attack"])),
        ("versions", versions),
    ]


def _attack(attack: Mapping[str, Any] | None) -> str:
    if attack is None:
        return "none"
    aim = "targeted, " if attack["targeted"] else ""
    runs = f"runs per radius: {attack['restarts']}, seed {attack['seed']}"
    return f"PGD ({aim}{attack['steps']} steps, {runs}) in balls that shrink"


def _radii(summary: Mapping[str, Any]) -> RenderableType:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("radius", "mean", *("median" if level == 0.5 else f"{100 * level:g} %" for level in QUANTILES)):
        table.add_column(name, justify="left" if name == "radius" else "right")
    for key, words in (("certified", "certified (at least)"), ("attacked", "attacked (at most)")):
        if summary[key] is not None:
            table.add_row(words, *("∞" if value is None else f"{value:.4g}" for value in summary[key].values()))
    return Group("", table, "")


def _shares(summary: Mapping[str, Any]) -> RenderableType:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("ε", "certified", "not attacked"):
        table.add_column(name, justify="right")
    for row in summary["shares"]:
        withstood = "" if summary["attacked"] is None else f"{100 * row['withstood']:.2f} %"
        table.add_row(f"{row['eps']:g}", f"{100 * row['certified']:.2f} %", withstood)
    return Group(table, "")
