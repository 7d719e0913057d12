"""The run folder: weights, recipe, seed, versions and data hash of a trained network, and how it is opened again.

recipe.toml      every field, defaults written out
run.json         status, seed, versions, hashes of data and recipe, machine, times
weights.pth      state dict after the last good epoch
metrics.csv, metrics.jsonl, tensorboard/
checkpoint.pth   while the run goes on
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ironbound
from ironbound.errors import InputError, TrainingError, WeightsError
from ironbound.models import load_weights, normalized, open_model
from ironbound.training import recipe as recipes
from ironbound.training.checkpoint import write_text, write_whole
from ironbound.training.initialisation import ibp_initialise

FORMAT = "ironbound-run/1"
_LOCK = "run.lock"


@dataclass(frozen=True)
class Artefact:
    """A trained network as its run folder holds it.

    Attributes:
        folder: of the run.
        recipe: how it was trained.
        facts: the content of run.json.
    """

    folder: Path
    recipe: recipes.Recipe
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Artefact:
        """Reads recipe and facts of a run, finished or not.

        Args:
            folder: of the run.

        Returns:
            The artefact.

        Raises:
            InputError: it is no run folder.
        """
        place = Path(folder)
        facts = _facts(place)
        if facts is None:
            raise InputError(f"{place} is no run folder: it holds no run.json.")
        return cls(place, recipes.Recipe.read(place / "recipe.toml"), facts)

    @property
    def weights(self) -> Path:
        """The state dict."""
        return self.folder / "weights.pth"

    def network(self) -> nn.Module:
        """The trained network in evaluation mode; no code of the weights' file runs, a factory's file does.

        Returns:
            The network.

        Raises:
            InputError: the recipe names no network.
            WeightsError: there are no weights yet, or they do not fit.
        """
        if not self.weights.is_file():
            raise WeightsError(f"{self.folder} holds no weights: no epoch of the run is finished.")
        return load_weights(network(self.recipe.model), self.weights)


def network(model: recipes.Model, seed: int = 0) -> nn.Module:
    """The network that a recipe names, with the weights that training starts from.

    Args:
        model: the recipe's section.
        seed: of fresh weights.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: the section names none.
        WeightsError: the weights do not fit.
    """
    if model.name is None and model.factory is None:
        raise InputError("the recipe names no network; set model.name or model.factory.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bare = open_model(model.name, None, model.factory, **model.options)
        if model.initialisation == "ibp" and model.weights is None:
            ibp_initialise(bare)
    made = bare if model.mean is None or model.std is None else normalized(bare, model.mean, model.std)
    if model.weights is not None:
        path = Path(model.weights)
        _load(made, bare, Artefact.open(path).weights if path.is_dir() else path)
    return made


def _load(made: nn.Module, bare: nn.Module, path: Path) -> None:
    """A run writes its normalisation with the weights, others give those of the bare architecture."""
    try:
        load_weights(made, path)
    except WeightsError:
        if made is bare:
            raise
        load_weights(bare, path)


class RunFolder:
    """The folder of a run that goes on; one process writes to it.

    Args:
        path: of the folder, which is made.
        recipe: the recipe.
        data: facts about the data: `sha256`, and what else is known.

    Raises:
        InputError: the folder holds a finished run, another run, or other files.
        TrainingError: it cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike[str], recipe: recipes.Recipe, data: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pth"
        self._recipe, self._data = recipe, dict(data)
        self._before = 0.0
        self._began = time.monotonic()

    def open(self) -> None:
        """Makes the folder, or checks that it holds this very run, unfinished."""
        self._make()
        facts = _facts(self.path)
        if facts is not None:
            self._compare(facts)
            self._before = float(facts.get("seconds", 0.0))
            return
        strangers = sorted(entry.name for entry in self.path.iterdir() if not _own(entry.name))
        text = self._recipe.to_toml()
        # a run that was killed between its first two files has only a recipe, this one
        if strangers and not (strangers == ["recipe.toml"] and (self.path / strangers[0]).read_text("utf-8") == text):
            raise InputError(f"{self.path} holds other files ({strangers[0]}, …); name a new folder for the run.")
        write_text(self.path / "recipe.toml", text)
        self.write("running", 0)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"the folder {self.path} cannot be made: {error.strerror}; name another.") from error

    def _compare(self, facts: Mapping[str, Any]) -> None:
        if facts["recipe_sha256"] != self._recipe.digest():
            theirs = recipes.Recipe.read(self.path / "recipe.toml").values()
            where = _difference(theirs, self._recipe.values()) or "a field"
            raise InputError(f"{self.path} holds a run of another recipe ({where}); name a new folder.")
        if facts["data"]["sha256"] != self._data["sha256"]:
            raise InputError(f"{self.path} holds a run on other data; name a new folder.")
        if facts["status"] == "finished":
            raise InputError(f"{self.path} holds a finished run, which is not overwritten; name a new folder.")

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Keeps other processes out; the system lets go when this one ends or is killed.

        Yields:
            Nothing.

        Raises:
            TrainingError: another process trains into this folder.
        """
        self._make()
        with contextlib.closing(sqlite3.connect(self.path / _LOCK, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                raise TrainingError(f"another process trains into {self.path}; name a new folder.") from error
            yield

    def write(self, status: str, epochs: int, processes: int = 1) -> None:
        """Writes run.json.

        Args:
            status: "running" or "finished".
            epochs: done so far.
            processes: that train.
        """
        facts = {
            "format": FORMAT,
            "status": status,
            "epochs": epochs,
            "seconds": round(self._before + time.monotonic() - self._began, 3),
            "seed": self._recipe.run.seed,
            "recipe_sha256": self._recipe.digest(),
            "data": self._data,
            "versions": _versions(),
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "processes": processes},
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        }
        write_text(self.path / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

    def write_weights(self, model: nn.Module) -> None:
        """Writes the state dict."""
        save_weights(model, self.path / "weights.pth")

    def finish(self, epochs: int, processes: int) -> None:
        """Marks the run as finished; the checkpoint has no more use."""
        self.write("finished", epochs, processes)
        self.checkpoint.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # an open file cannot be removed on every system
            (self.path / _LOCK).unlink()


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a state dict, whole or not at all.

    Args:
        model: the network.
        path: of the file.

    Raises:
        TrainingError: it cannot be written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    write_whole(path, lambda file: torch.save(state, file))


def _own(name: str) -> bool:
    """Whether a file is left over from the very beginning of a run: the lock, or one that was not whole yet."""
    return name.startswith(_LOCK) or name.endswith(".part")


def _facts(folder: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'run.json'} cannot be read: {error}.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{folder / 'run.json'} is not of this version ({FORMAT}).")
    return facts


def _versions() -> dict[str, str]:
    return {
        "ironbound": ironbound.__version__,
        "torch": str(torch.__version__),
        "lightning-fabric": version("lightning-fabric"),
        "python": platform.python_version(),
    }


def _difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first field in which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in (*old, *(name for name in new if name not in old)):
            if path + name in recipes.FREE:
                continue
            found = _difference(old.get(name), new.get(name), f"{path}{name}.")
            if found is not None:
                return found
        return None
    return None if old == new else f"{path.rstrip('.')} is {new!r}, there {old!r}"
