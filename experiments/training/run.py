"""Trains and certifies rows of the papers' tables; what is finished is skipped, what was stopped goes on.

    python -m experiments.training.run --only mnist-small mnist-small-tight --data-dir DATA
    python -m experiments.training.run --everything --data-dir DATA      # all rows, on a GPU

Run folders and stores are under OUT/runs, a JSON file per row and seed under OUT/results, weights under OUT/weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from experiments.training import rows
from experiments.training.evaluate import errors, parameters, sha256, threads, whole_set
from ironbound.data import Dataset
from ironbound.errors import DataError, InputError, IronboundError, TrainingError
from ironbound.training import Artefact, Epoch, Recipe, train
from ironbound.training.artefact import network
from ironbound.training.record import Step

FORMAT = "ironbound-experiment/1"
_EPOCH = ("number", "stage", "seconds", "seen", "loss", "error", "clean", "certified")


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows; default: all that fit two cores")
    parser.add_argument("--everything", action="store_true", help="all rows, on a GPU")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", nargs="+", type=Path, default=[], help="folders with the data sets")
    parser.add_argument("--out", type=Path, default=rows.HERE, help="default: beside this file")
    parser.add_argument("--limit", type=int, help="only so many training and test images: a trial, in another OUT")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="changes for a trial, in another OUT"
    )
    parser.add_argument("--gpu", action="store_true", help="train and certify on CUDA")
    parser.add_argument("--keep-weights", action="store_true", help="copy the weights to OUT/weights")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="description to record")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    chosen = parser.parse_args(arguments)
    if (chosen.limit or chosen.set) and chosen.out == rows.HERE:
        parser.error("a trial (--limit, --set) is not recorded beside this file; name another folder with --out")
    chosen.gpu = chosen.gpu or chosen.everything
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Runs the rows.

    Args:
        arguments: of the command line.

    Returns:
        0, or 1 where a row could not be finished.

    Raises:
        SystemExit: an unknown row.
    """
    chosen = options(arguments)
    known = rows.by_name()
    if chosen.list:
        print("\n".join(f"{row.name}{'  (GPU)' if row.gpu else ''}  [{row.group}]" for row in known.values()))
        return 0
    names = chosen.only or [name for name, row in known.items() if chosen.everything or not row.gpu]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"unknown row {unknown[0]!r}; --list prints them")
    bad = 0
    for name in names:
        for seed in chosen.seeds:
            try:
                perform(known[name], seed, chosen)
            except IronboundError as error:
                bad += 1
                say(name, seed, f"not finished: {' '.join(str(error).split())}")
    return int(bad > 0)


def perform(row: rows.Row, seed: int, chosen: argparse.Namespace) -> None:
    """Trains, certifies and records one row with one seed, as far as it is not done.

    Args:
        row: the row.
        seed: of the run.
        chosen: the command line.

    Raises:
        TrainingError: training has collapsed; that is recorded.
        IronboundError: the data are not there, or the folders hold another run.
    """
    recipe = row.read(f"run.seed={seed}", f"run.device={'cuda' if chosen.gpu else 'cpu'}", *_trial(chosen))
    if chosen.gpu:
        recipe = recipe.override("run.workers=1")
    path = chosen.out / "results" / f"{row.name}-{seed}.json"
    if _finished(path, recipe):
        say(row.name, seed, "is recorded")
        if not chosen.keep_weights:
            return
    folder = chosen.out / "runs" / f"{row.name}-{seed}"
    if not _finished(path, recipe):
        record = {"format": FORMAT, "row": row.name, "title": recipe.title, "seed": seed, "limit": chosen.limit,
                  "command": _command(row, seed, chosen), "machine": _machine(chosen)}  # fmt: skip
        record |= _trained(row, seed, recipe, folder, chosen)
        if record["status"] == "finished":
            record |= _certified(row, seed, recipe, folder, chosen)
        record["date"] = datetime.now(timezone.utc).date().isoformat()
        write(path, record)
        if record["status"] != "finished":
            raise TrainingError(record["message"])
        say(row.name, seed, ", ".join(f"{name} {value:.2f} %" for name, value in record["errors"].items()))
    if chosen.keep_weights:
        kept = chosen.out / "weights" / f"{row.name}-{seed}.pth"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "weights.pth", kept)
        total = sum(file.stat().st_size for file in kept.parent.glob("*.pth"))
        say(row.name, seed, f"weights kept in {kept}; {total / 2**20:.1f} MB in all")


def _trial(chosen: argparse.Namespace) -> list[str]:
    return [*([f"data.limit={chosen.limit}"] if chosen.limit else []), *chosen.set]


def _finished(path: Path, recipe: Recipe) -> bool:
    """Whether the result of this very recipe is there."""
    if not path.is_file():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["recipe_sha256"] != recipe.digest():
        raise InputError(f"{path} is the result of another recipe or device; remove it, and its run folder")
    return record["status"] == "finished"


def _trained(row: rows.Row, seed: int, recipe: Recipe, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Trains, unless it is done; a collapse is a result too."""
    status, message = "finished", None
    data = _load(recipe, "train", chosen)
    if not _is_trained(folder, recipe):
        say(row.name, seed, f"trains: {recipe.title}")
        model = network(recipe.model, seed)

        def progress(epoch: Epoch) -> None:
            say(row.name, seed, f"epoch {epoch.number}: loss {epoch.loss:.4f}, error {100 * epoch.error:.2f} %, "
                f"{epoch.seconds:.0f} s")  # fmt: skip

        last: deque[Step] = deque(maxlen=1)
        try:
            train(model, data.inputs, data.labels, recipe, folder=folder, progress=progress, on_step=last.append)
        except TrainingError as error:
            if not last:  # the folder is in use, or cannot be written: no result
                raise
            place = folder.relative_to(chosen.out).as_posix()  # records name no path of a machine
            status, message = "failed", " ".join(str(error).replace(str(folder), place).split())
    facts = Artefact.open(folder).facts
    return {
        "status": status,
        **({"message": message} if message else {}),
        "recipe_sha256": facts["recipe_sha256"],
        "versions": facts["versions"],
        "training_data": {**facts["data"], "notes": list(data.notes)},
        "minutes": {"training": round(facts["seconds"] / 60, 4)},
        "workers": recipe.run.workers,
        "threads": threads(),
        "epochs": _epochs(folder),
    }


def _is_trained(folder: Path, recipe: Recipe) -> bool:
    if not (folder / "run.json").is_file():
        return False
    facts = Artefact.open(folder).facts
    if facts["recipe_sha256"] != recipe.digest():
        raise InputError(f"{folder} holds a run of another recipe or device; remove it")
    return facts["status"] == "finished"


def _certified(row: rows.Row, seed: int, recipe: Recipe, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    data = _load(recipe, "test", chosen)
    artefact = Artefact.open(folder)
    model = artefact.network().to("cuda" if chosen.gpu else "cpu")
    say(row.name, seed, f"certifies {len(data)} images")
    found = errors(model, data, recipe.region, folder, row.search)
    seconds = found.pop("seconds")
    spent = {
        "training": round(artefact.facts["seconds"] / 60, 4),
        "certification": round(sum(seconds.values()) / 60, 4),
    }
    return {
        **found,
        "minutes": spent,
        "seconds": seconds,
        "test_data": {"name": data.name, "sha256": data.digest, "notes": list(data.notes)},
        "parameters": parameters(model),
        "weights_sha256": sha256(artefact.weights),
    }


def _load(recipe: Recipe, split: str, chosen: argparse.Namespace) -> Dataset:
    if recipe.data.name is None:
        raise DataError("the recipe names no data")
    return whole_set(recipe.data.name, split, chosen.data_dir, chosen.limit)


def _epochs(folder: Path) -> list[dict[str, Any]]:
    """What the log says of each epoch, shortened."""
    log = folder / "metrics.jsonl"
    if not log.is_file():
        return []
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line]
    return [{key: _short(line[key]) for key in _EPOCH if line.get(key) is not None} for line in lines]


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _command(row: rows.Row, seed: int, chosen: argparse.Namespace) -> str:
    parts = ["python -m experiments.training.run --only", row.name, "--seeds", str(seed)]
    parts += ["--gpu"] if chosen.gpu else []
    parts += ["--limit", str(chosen.limit)] if chosen.limit else []
    return " ".join([*parts, *(["--set", *chosen.set] if chosen.set else [])])


def _machine(chosen: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if chosen.gpu else "CPU only"
    return f"{chosen.machine}, {os.cpu_count()} cores, {device}"


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes a result, whole or not at all.

    Args:
        path: of the file; its folder is made.
        record: the result.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    part = path.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)


def say(name: str, seed: int, text: str) -> None:
    """A line for people."""
    print(f"{name}, seed {seed}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
