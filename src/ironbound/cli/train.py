"""`ironbound train`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ironbound.cli import options as given
from ironbound.cli.session import exit_codes, parse_clip, parse_pair
from ironbound.errors import InputError

if TYPE_CHECKING:
    from ironbound.training import Epoch, Recipe, Step

_PANEL = "Without a recipe file"


def _explain(asked: bool) -> None:
    if asked:
        from ironbound.training.explain import text

        typer.echo(text())
        raise typer.Exit()


def train(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe (TOML); see docs/training.md.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same command resumes there.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field, such as run.seed=3.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", callback=_explain, is_eager=True, help="Print every field of a recipe.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="digits, mnist, fashion-mnist, cifar10, svhn, har, or an .npz file.")
    ] = None,
    data_dir: given.DataDir = None,
    arch: given.Arch = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights or run folder to start from.", rich_help_panel="Network")
    ] = None,
    factory: given.Factory = None,
    limit: given.Limit = None,
    loss: Annotated[str, typer.Option(help="standard, pgd, interval, …", rich_help_panel=_PANEL)] = "interval",
    eps: Annotated[float, typer.Option(help="Radius ε in the units of the data.", rich_help_panel=_PANEL)] = 0.1,
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.", rich_help_panel=_PANEL)] = "linf",
    clip: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Range of the inputs, such as 0,1.", rich_help_panel=_PANEL)
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.", rich_help_panel=_PANEL)] = 10,
    batch_size: Annotated[int, typer.Option(help="Examples per step.", rich_help_panel=_PANEL)] = 64,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.", rich_help_panel=_PANEL)] = 1e-3,
    ramp: Annotated[
        str | None,
        typer.Option(
            metavar="FROM,TO",
            help="Epochs in which ε grows from 0 (default: the first half; none for standard).",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    kappa: Annotated[
        float, typer.Option(help="Final weight of the standard part (interval).", rich_help_panel=_PANEL)
    ] = 0.5,
    quiet: given.Quiet = False,
) -> None:
    """Train a network by a recipe, or by a few options; under torchrun on several processes.

    The folder holds weights, recipe, seed, versions and hashes; `ironbound certify FOLDER` takes it as it is.
    """
    with exit_codes(lambda: "" if out is None else f"; the same command goes on from the last checkpoint in {out}"):
        from ironbound.training import Recipe, simple

        if recipe is not None:
            made = Recipe.read(recipe)
        else:
            half = (0.0, epochs / 2) if loss != "standard" else (0.0, 0.0)
            made = simple(
                loss,
                eps,
                epochs,
                lr,
                half if ramp is None else parse_pair("--ramp", ramp),
                kappa,
                norm=norm,
                clip=parse_clip(clip),
                batch_size=batch_size,
            )
        named: dict[str, Any] = {
            "model.name": arch,
            "model.factory": factory,
            "model.weights": weights,
            "data.name": data,
            "data.root": data_dir,
            "data.limit": limit,
        }
        overrides = [f"{field}={_literal(value)}" for field, value in named.items() if value is not None]
        _run(made.override(*overrides, *(set_ or ())), out, quiet)


def _literal(value: Any) -> str:
    import json

    return str(value) if isinstance(value, int) else json.dumps(str(value), ensure_ascii=False)


def _run(recipe: Recipe, out: Path | None, quiet: bool) -> None:
    if out is None:
        raise InputError("name the folder of the run: --out FOLDER.")
    import torch

    from ironbound.data import load
    from ironbound.training import train as run
    from ironbound.training.artefact import network

    if recipe.data.name is None:
        raise InputError("the recipe names no data; set data.name, or give --data.")
    first = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun
    model = network(recipe.model, recipe.run.seed)
    dataset = load(recipe.data.name, "train", recipe.data.root, recipe.data.limit)
    epochs = sum(plan.epochs for plan in recipe.plans())
    with _Bar(quiet or not first, epochs) as bar:
        run(model, dataset.inputs, dataset.labels, recipe, folder=out, progress=bar.epoch, on_step=bar.step)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if first:
        typer.echo(f"trained; ironbound certify {out} proves what can be proved of it.")


class _Bar:
    """A bar on a terminal, with loss, clean and certified error; a line per epoch otherwise.

    Args:
        quiet: show nothing.
        epochs: in all.
    """

    def __init__(self, quiet: bool, epochs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._quiet, self._epochs, self._known = quiet, epochs, ""
        console = Console(stderr=True)
        self._lines = not console.is_terminal
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}{task.fields[known]}"),
            console=console,
            disable=quiet or self._lines,
        )
        self._task = self._bar.add_task("", total=epochs, epoch=1, loss="…", known="")

    def step(self, step: Step) -> None:
        """Shows how far training is."""
        self._bar.update(self._task, completed=step.time, epoch=step.epoch, loss=f"{step.loss:.4f}", known=self._known)

    def epoch(self, epoch: Epoch) -> None:
        """Shows what an epoch found."""
        found = epoch.evaluation
        self._known = f", error {_percent(epoch.error)}"
        if found is not None:
            self._known = f", clean {_percent(found.clean)}, certified {_percent(found.certified_best)}"
        self._bar.update(self._task, known=self._known)
        if self._lines and not self._quiet:
            text = f"epoch {epoch.number}/{self._epochs}: ε {epoch.eps:.4g}, loss {epoch.loss:.4f}{self._known}"
            typer.echo(text, err=True)
            sys.stderr.flush()

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
