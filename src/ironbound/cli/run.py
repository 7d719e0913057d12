"""The work that `certify` and `attack` share: open network and data, run the cascade, report."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import typer

from ironbound.cli.session import Watch, exit_codes, parse_clip, parse_range
from ironbound.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ironbound.bounding import Arithmetic
    from ironbound.cascade_types import AttackOptions
    from ironbound.certification import Certification
    from ironbound.data import Dataset
    from ironbound.radius_result import Radius

Answer = TypeVar("Answer", "Certification", "Radius")
_PIXELS = ("digits", "mnist", "fashion-mnist", "cifar10", "svhn")


@dataclass(frozen=True)
class Source:
    """The network and the examples that the options name."""

    arch: str | None
    weights: Path | None
    factory: str | None
    data: str | None
    data_dir: Path | None
    split: str
    limit: int | None
    range: str | None
    run: Path | None = None


@dataclass(frozen=True)
class Query:
    """What is asked of them."""

    eps: float | None
    norm: str | None
    clip: str | None
    methods: tuple[str, ...]
    attack: str
    attack_steps: int = 40
    restarts: int = 1
    targeted: bool = False
    seed: int = 0
    detect: bool = False
    budget: float | None = None
    arithmetic: str = "real"


@dataclass(frozen=True)
class Output:
    """What becomes of the answer."""

    store: Path | None
    shard: int
    save_adversarial: Path | None
    per_class: bool
    json: bool
    quiet: bool
    threads: int | None
    device: str
    certificates: Path | None = None


def run(source: Source, query: Query, output: Output) -> None:
    """Runs the query and prints the result: a table, or JSON.

    Raises:
        BadParameter: neither data and radius nor a run folder that knows them are named.
    """
    if run_folder(source) is None and (source.data is None or query.eps is None):
        raise typer.BadParameter("name the data and the radius (--data, --eps), or the folder of a run.")
    with exit_codes():
        watch = Watch(output.quiet or output.json, output.store)
    with exit_codes(watch.kept):
        result = _certify(source, query, output, watch)
        if output.save_adversarial is not None:
            save_adversarial(output.save_adversarial, result)
        if output.json:
            typer.echo(json.dumps(result.to_dict(output.per_class), ensure_ascii=False, allow_nan=False))
        else:
            from ironbound.report.table import print_table

            print_table(result, output.per_class)
            if output.certificates is not None:
                typer.echo(_certificates_line(result, output.certificates))


@dataclass(frozen=True)
class Opened:
    """What the options name, in memory, and the options with what a run folder added."""

    model: nn.Module
    source: Source
    query: Query
    dataset: Dataset
    start: int
    stop: int

    @property
    def inputs(self) -> Tensor:
        """The chosen examples."""
        return self.dataset.inputs[self.start : self.stop]

    @property
    def labels(self) -> Tensor | None:
        """Their labels, or None where the predictions take their place."""
        return None if self.query.detect else self.dataset.labels[self.start : self.stop]


def open_all(source: Source, query: Query, output: Output) -> Opened:
    """Opens network and data, and sets what the options say about threads and device.

    Args:
        source: the network and the examples.
        query: what is asked.
        output: says which threads and which device.

    Returns:
        All of it.

    Raises:
        InputError: something does not fit, or is not named.
    """
    parse_clip(query.clip)
    import torch

    from ironbound.data import load

    if output.threads is not None:
        torch.set_num_threads(output.threads)
    model, source, query = _opened(source, query)
    if source.data is None:
        raise InputError(f"{source.run or source.weights} does not say which data it is for; give --data.")
    dataset = load(source.data, source.split, source.data_dir)
    start, stop = parse_range(source.range, source.limit, len(dataset))
    return Opened(to_device(model, output.device), source, query, dataset, start, stop)


def _certify(source: Source, query: Query, output: Output, watch: Watch) -> Certification:
    from ironbound.certification import certify

    given = open_all(source, query, output)
    query = given.query
    if query.eps is None:
        raise InputError(f"{source.run or source.weights} does not say which radius; give --eps.")
    with watch:
        result = certify(
            given.model,
            given.inputs,
            given.labels,
            eps=query.eps,
            norm=query.norm or "linf",
            clip=parse_clip(query.clip),
            methods=query.methods,
            attack=attack_options(query),
            store=output.store,
            shard=output.shard,
            progress=watch,
            budget=query.budget,
            arithmetic=arithmetic_of(query),
            certificates=output.certificates,
        )
    return with_origin(result, given.source, given.dataset, given.start, given.stop)


def _certificates_line(result: Certification, folder: Path) -> str:
    certified = int((result.status == "certified").sum())
    return f"Certificates of {len(result.certificates)} of {certified} certified examples are in {folder}."


def run_folder(source: Source) -> Path | None:
    """The folder of a training run, where the options name one."""
    return source.run or (source.weights if source.weights is not None and source.weights.is_dir() else None)


def _opened(source: Source, query: Query) -> tuple[nn.Module, Source, Query]:
    """The network; a run folder also fills in what no option says: data, ε, norm and clipping range."""
    weights, folder = source.weights, run_folder(source)
    if folder is None:
        from ironbound.models import open_model

        return open_model(source.arch, weights, source.factory), source, query
    if source.run is not None and weights is not None:
        raise InputError("name a run folder or weights, not both.")
    from ironbound.training import Artefact

    artefact = Artefact.open(folder)
    data, region = artefact.recipe.data, artefact.recipe.region
    if source.arch is not None or source.factory is not None:  # of a run whose recipe names no network
        from ironbound.models import open_model

        model = open_model(source.arch, artefact.weights, source.factory)
    else:
        model = artefact.network()
    root = source.data_dir or (Path(data.root) if data.root is not None and source.data is None else None)
    clip = query.clip or (None if region.clip is None else ",".join(map(repr, region.clip)))
    eps = region.eps if query.eps is None else query.eps
    source = replace(source, weights=artefact.weights, data=source.data or data.name, data_dir=root)
    return model, source, replace(query, eps=eps, norm=query.norm or region.norm, clip=clip)


def to_device(model: nn.Module, device: str) -> nn.Module:
    """Moves a network.

    Args:
        model: the network.
        device: "cpu", "cuda", …

    Returns:
        The network.

    Raises:
        InputError: there is no such device.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def arithmetic_of(query: Query) -> Arithmetic | None:
    """What is to be proved; "none" stands for None. The functions refuse other words."""
    return None if query.arithmetic == "none" else cast("Arithmetic", query.arithmetic)


def attack_options(query: Query) -> AttackOptions | None:
    """The attack that the options describe."""
    from ironbound.cascade_types import AttackOptions

    if query.attack == "none":
        return None
    return AttackOptions(query.attack, query.attack_steps, query.restarts, query.targeted, query.seed)


def with_origin(result: Answer, source: Source, dataset: Dataset, start: int, stop: int) -> Answer:
    """Adds what the library cannot know: where network and data came from, and their unit."""
    named = (source.factory, source.arch, None if source.weights is None else str(source.weights))
    origin: dict[str, Any] = {
        "data": {"name": dataset.name, "split": dataset.split, "range": [start, stop], "notes": list(dataset.notes)},
        "network": " ".join(name for name in named if name),
    }
    if dataset.name in _PIXELS:
        origin["unit"] = "pixels in [0, 1]"
    return replace(result, settings={**result.settings, **origin})


def save_adversarial(path: Path, result: Certification) -> None:
    """Writes the inputs that change the answer.

    Args:
        path: of the .npz file: `x` [m, *shape], `y` the labels [m], `index` the numbers of the examples [m].
        result: the certification.

    Raises:
        InputError: there is none, or the file cannot be written.
    """
    import numpy as np

    index = sorted(result.adversarial)
    if not index:
        raise InputError(f"no input changes an answer, so {path} is not written.")
    points = np.stack([result.adversarial[example].numpy() for example in index])
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, x=points, y=result.labels[index].numpy(), index=np.array(index))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}.") from error
