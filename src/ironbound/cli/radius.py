"""`ironbound radius`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironbound.cli import options as given

if TYPE_CHECKING:
    from torch import Tensor

    from ironbound.cli.run import Output, Query, Source
    from ironbound.cli.session import Watch
    from ironbound.radius_result import Radius


def radius(
    run_folder: given.Run = None,
    data: given.Data = None,
    arch: given.Arch = None,
    weights: given.Weights = None,
    factory: given.Factory = None,
    data_dir: given.DataDir = None,
    split: given.Split = "test",
    limit: given.Limit = None,
    range_: given.Range = None,
    norm: given.Norm = None,
    clip: given.Clip = None,
    method: Annotated[
        str, typer.Option(help="Proof method: interval, dual, crown, alpha, …", rich_help_panel="Query")
    ] = "dual",
    tolerance: Annotated[
        float, typer.Option(help="Relative distance from the method's border.", rich_help_panel="Query")
    ] = 1e-4,
    arithmetic: given.Arithmetic = "real",
    attack: Annotated[str, typer.Option(help="pgd, or none.", rich_help_panel="Query")] = "pgd",
    attack_steps: given.AttackSteps = 20,
    restarts: given.Restarts = 1,
    targeted: given.Targeted = False,
    seed: given.Seed = 0,
    detect: Annotated[
        bool,
        typer.Option(
            "--detect", help="Predictions in place of labels: how near is another answer?", rich_help_panel="Query"
        ),
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(metavar="ε,ε,…", help="Radii whose shares of examples are told.", rich_help_panel="Query"),
    ] = None,
    store: given.Store = None,
    shard: given.Shard = 256,
    save: Annotated[
        Path | None,
        typer.Option(help="Write radii and nearest adversarial inputs (.npz).", rich_help_panel="Output and resources"),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the radii in increasing order (.png, .pdf).", rich_help_panel="Output and resources"),
    ] = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
    threads: given.Threads = None,
    device: given.Device = "cpu",
) -> None:
    """Find for each example the largest ε that is proved, and the smallest at which an attack succeeds."""
    from ironbound.cli.run import Output, Query, Source
    from ironbound.cli.run import run_folder as folder
    from ironbound.cli.session import Watch, exit_codes

    source = Source(arch, weights, factory, data, data_dir, split, limit, range_, run_folder)
    query = Query(None, norm, clip, (method,), attack, attack_steps, restarts, targeted, seed, detect, None, arithmetic)
    output = Output(store, shard, None, False, json, quiet, threads, device)
    if folder(source) is None and data is None:
        raise typer.BadParameter("name the data (--data), or the folder of a run.")
    with exit_codes():
        watch = Watch(quiet or json, store)
        eps = _numbers(at)
    with exit_codes(watch.kept):
        result, truth = _found(source, query, output, watch, tolerance)
        if save is not None:
            _save(save, result)
        if figure is not None:
            _draw(figure, result, truth)
        if json:
            typer.echo(result.to_json(eps))
        else:
            from ironbound.report.radius_table import print_radius

            print_radius(result, eps)


def _numbers(text: str | None) -> tuple[float, ...]:
    from ironbound.errors import InputError

    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"--at must be numbers such as 0.05,0.1, got {text!r}.") from None


def _found(source: Source, query: Query, output: Output, watch: Watch, tolerance: float) -> tuple[Radius, Tensor]:
    """The radii, and the true labels, which the predictions may have replaced."""
    from ironbound.certified_radius import radius as solve
    from ironbound.cli.run import arithmetic_of, attack_options, open_all, with_origin
    from ironbound.cli.session import parse_clip

    opened = open_all(source, query, output)
    query = opened.query
    with watch:
        result = solve(
            opened.model,
            opened.inputs,
            query.norm or "linf",
            query.methods[0],
            opened.labels,
            clip=parse_clip(query.clip),
            attack=attack_options(query),
            tolerance=tolerance,
            store=output.store,
            shard=output.shard,
            progress=watch,
            arithmetic=arithmetic_of(query),
        )
    truth = opened.dataset.labels[opened.start : opened.stop]
    return with_origin(result, opened.source, opened.dataset, opened.start, opened.stop), truth


def _save(path: Path, result: Radius) -> None:
    import numpy as np

    from ironbound.errors import InputError

    names = ("certified", "attacked", "adversarial", "evaluations", "labels", "predictions")
    arrays = {name: getattr(result, name).numpy() for name in names}
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays, arithmetic=result.arithmetic)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}.") from error


def _draw(path: Path, result: Radius, truth: Tensor) -> None:
    from ironbound.errors import InputError
    from ironbound.report.radius_figure import draw_radius

    try:
        draw_radius(result, truth, path)
    except (OSError, ValueError) as error:  # matplotlib says the second of endings that it cannot write
        raise InputError(f"{path} cannot be drawn: {error}.") from error
