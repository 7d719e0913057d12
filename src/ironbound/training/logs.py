"""Logs of a run: metrics.csv, metrics.jsonl, and TensorBoard where it is asked for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ironbound.errors import InputError
from ironbound.training.checkpoint import write_text
from ironbound.training.record import Epoch


class Logs:
    """Writes the epochs so far; the files are small and written as a whole, so that a resumed run repeats no row.

    Args:
        folder: of the run.
        tensorboard: whether to write TensorBoard's event files, in the folder's `tensorboard`.
        done: epochs that are already in the logs of a run that goes on.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool, done: int = 0) -> None:
        self._folder = folder
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise InputError(
                    "run.tensorboard needs TensorBoard: pip install 'ironbound[tensorboard]', or leave it false."
                ) from error
            # events of epochs that were logged but not kept in the checkpoint are hidden
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)

    def write(self, epochs: Sequence[Epoch]) -> None:
        """Writes all epochs; the last one is new."""
        rows = [epoch.row() for epoch in epochs]
        write_text(self._folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self._folder / "metrics.csv", text.getvalue())
        if self._writer is not None and rows:
            for name, value in rows[-1].items():
                if isinstance(value, (int, float)) and name != "number":
                    self._writer.add_scalar(name, value, rows[-1]["number"])
            self._writer.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
