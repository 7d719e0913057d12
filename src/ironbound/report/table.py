"""The summary of a certification as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ironbound.certification import Certification

_RATES = {
    "clean_error": "clean error",
    "attack_error": "attack error (robust error is at least)",
    "certified_error_bound": "certified error bound (… at most)",
    "certified": "certified: cannot be adversarial",
    "flagged": "flagged: nothing proved",
}


def print_table(result: Certification, per_class: bool = False, console: Console | None = None) -> None:
    """Prints settings, rates and how the examples were decided, on stdout.

    Args:
        result: the certification.
        per_class: one more line of rates for each class.
        console: another place to print to.
    """
    summary = result.summary(per_class)
    parts: list[RenderableType] = [settings_grid(describe(result)), _rates(summary), _decided(summary)]
    if per_class:
        parts.append(_per_class(summary))
    parts.append(seconds_line(result.seconds))
    show(parts, console)


def show(parts: list[RenderableType], console: Console | None = None) -> None:
    """Prints the parts of a report on stdout, or on another console."""
    console = console or Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:  # a pipe has no width: lines must not be folded at 80 columns
        console.width = max(console.width, 160)
    console.print(Group(*parts))


def describe(result: Certification) -> list[tuple[str, str]]:
    """What the numbers belong to, as pairs of name and value.

    Args:
        result: the certification.

    Returns:
        The lines of a report's head.
    """
    settings = result.settings
    eps, clip, attack, versions = (settings[key] for key in ("eps", "clip", "attack", "versions"))
    radius = f"{eps:g}" if isinstance(eps, float) else f"{eps[0]:g} to {eps[1]:g}"
    network = f"{settings.get('network', '')} (sha256 {settings['network_sha256'][:12]}…)".strip()
    return [
        ("data", data_words(result.settings, len(result))),
        ("network", network),
        ("region", f"ε = {radius} ({settings['unit']}), norm {settings['norm']}, {clip_words(clip)}"),
        ("methods", ", ".join(settings["methods"]) or "none"),
        ("attack", _attack(attack)),
        ("proofs for", arithmetic_words(result.summary()["arithmetic"])),
        *_unproved(result.summary()["unproved"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _unproved(count: Mapping[str, int]) -> list[tuple[str, str]]:
    """A line on unknown examples whose margins are computed, but not proved."""
    return (
        [("above a guard only", f"{arithmetic_words(count)} (unknown; --arithmetic none certifies them)")]
        if count
        else []
    )


def arithmetic_words(count: Mapping[str, int]) -> str:
    """How many proofs hold for what."""
    return "; ".join(f"{name}: {found}" for name, found in count.items()) or "nothing is certified"


def data_words(settings: Mapping[str, Any], examples: int) -> str:
    """What is said of the data."""
    data = settings.get("data")
    if data is None:
        return f"{examples} examples (sha256 {settings['data_sha256'][:12]}…)"
    start, stop = data["range"]
    notes = "".join(f"\n! {note}" for note in data["notes"])
    return f"{data['name']} {data['split']}, examples {start} to {stop - 1} ({examples}){notes}"


def clip_words(clip: list[float] | None) -> str:
    """What is said of the range of the inputs."""
    return "not clipped" if clip is None else f"clipped to [{clip[0]:g}, {clip[1]:g}]"


def _attack(attack: dict[str, Any] | None) -> str:
    if attack is None:
        return "none"
    if attack["name"] == "fgsm":
        return "FGSM"
    aim = "targeted, " if attack["targeted"] else ""
    return (
        f"FGSM, then PGD ({aim}{attack['steps']} steps, runs per example: {attack['restarts']}, seed {attack['seed']})"
    )


def settings_grid(lines: list[tuple[str, str]]) -> RenderableType:
    """The head of a report: pairs of name and value, one below the other."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in lines:
        grid.add_row(name, Text(value))
    return grid


def _rates(summary: dict[str, Any]) -> RenderableType:
    table = Table(title=None, show_edge=False, pad_edge=False)
    for name in ("", "examples", "share", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right")
    for key, words in _RATES.items():
        if key in summary:
            table.add_row(words, *_cells(summary[key]))
    return Group("", table, "")


def _cells(found: dict[str, float] | None) -> tuple[str, str, str]:
    if found is None:
        return "", "not attacked", ""
    return (
        str(found["count"]),
        f"{100 * found['fraction']:.2f} %",
        f"{100 * found['low']:.2f} to {100 * found['high']:.2f} %",
    )


def _decided(summary: dict[str, Any]) -> RenderableType:
    status = {name: count for name, count in summary["status"].items() if count or name != "misclassified"}
    proofs = ", ".join(f"{method} {count}" for method, count in summary["method"].items())
    words = [
        f"{name} {count}" + (f" (by {proofs})" if name == "certified" and proofs else "")
        for name, count in status.items()
    ]
    return Text(", ".join(words) + f" of {summary['examples']}")


def _per_class(summary: dict[str, Any]) -> RenderableType:
    keys = [key for key in _RATES if key in summary]
    table = Table(show_edge=False, pad_edge=False)
    for name in (
        "predicted" if summary["detection"] else "class",
        "examples",
        *(key.replace("_", " ") for key in keys),
    ):
        table.add_column(name, justify="right")
    for label, found in summary["per_class"].items():
        cells = ("–" if found[key] is None else f"{100 * found[key]['fraction']:.2f} %" for key in keys)
        table.add_row(str(label), str(found["examples"]), *cells)
    return Group("", table, "")


def seconds_line(seconds: Mapping[str, float]) -> RenderableType:
    """What each stage took."""
    return Text("seconds: " + ", ".join(f"{stage} {spent:.2f}" for stage, spent in seconds.items()), style="dim")
