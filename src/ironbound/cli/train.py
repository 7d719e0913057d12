"""`ironbound train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironbound.cli import options as given
from ironbound.cli.session import exit_codes, parse_clip, parse_pair
from ironbound.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn

_PANEL = "Training"


def train(
    out: Annotated[Path, typer.Option(help="File for the weights (.pth), written after every epoch.")],
    data: given.Data,
    arch: given.Arch = None,
    weights: given.Weights = None,
    factory: given.Factory = None,
    data_dir: given.DataDir = None,
    limit: given.Limit = None,
    loss: Annotated[str, typer.Option(help="standard, pgd or interval.", rich_help_panel=_PANEL)] = "interval",
    eps: given.Eps = 0.1,
    norm: given.Norm = "linf",
    clip: given.Clip = None,
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
    kappa: Annotated[float, typer.Option(help="Final weight of the standard loss.", rich_help_panel=_PANEL)] = 0.5,
    attack_steps: Annotated[int, typer.Option(help="Steps of the pgd loss.", rich_help_panel=_PANEL)] = 10,
    seed: given.Seed = 0,
    quiet: given.Quiet = False,
    threads: given.Threads = None,
    device: given.Device = "cpu",
) -> None:
    """Train a network: standard, against an attack, or towards small interval bounds."""
    done: list[str] = []
    with exit_codes(lambda: f" after {done[-1]}, whose weights are in {out}" if done else " in the first epoch"):
        import torch

        from ironbound.cli.run import to_device
        from ironbound.data import load
        from ironbound.models import open_model
        from ironbound.training import Epoch, Recipe
        from ironbound.training import train as run

        half = (0.0, epochs / 2) if loss != "standard" else (0.0, 0.0)
        recipe = Recipe(
            loss=loss,
            eps=eps,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            ramp=half if ramp is None else parse_pair("--ramp", ramp),
            kappa=kappa,
            attack_steps=attack_steps,
            norm=norm,
            clip=parse_clip(clip),
            seed=seed,
        )
        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(seed)
        model = to_device(open_model(arch, weights, factory), device)
        dataset = load(data, "train", data_dir, limit)
        save_weights(model, out)  # a path that cannot be written is known before the work, not after

        def report(epoch: Epoch) -> None:
            save_weights(model, out)
            done.append(f"epoch {epoch.number} of {epochs}")
            if not quiet:
                numbers = f"ε {epoch.eps:.4g}, loss {epoch.loss:.4f}, error {100 * epoch.error:.2f} %"
                typer.echo(f"epoch {epoch.number}/{epochs}: {numbers}", err=True)

        run(model, dataset.inputs.to(device), dataset.labels.to(device), recipe, report)
        typer.echo(f"weights written to {out}")


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a state dict, whole or not at all.

    Args:
        model: the network.
        path: of the file.

    Raises:
        WeightsError: it cannot be written.
    """
    import torch

    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, file)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{path} cannot be written: {str(error).splitlines()[0]}; name another file.") from error
