"""The list of a benchmark's instances: a CSV file with a network, a property and a time limit in each line."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path

from ironbound.data.files import read
from ironbound.errors import DataError


@dataclass(frozen=True)
class Instance:
    """One line of the list.

    Attributes:
        network: path of the ONNX file.
        property: path of the VNNLIB file.
        timeout: limit in seconds.
    """

    network: Path
    property: Path
    timeout: float


def read_instances(path: str | os.PathLike[str]) -> list[Instance]:
    """Read a benchmark's list; its paths are relative to its folder.

    A file that is there only under its name with .gz appended, as benchmarks are stored, is found as well.

    Args:
        path: instances.csv.

    Returns:
        The instances, in the file's order.

    Raises:
        DataError: the list is missing, or a line has not three columns, or no positive time limit.
    """
    path = Path(path)
    try:
        lines = read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file; name the list of instances.") from error
    found = []
    for number, row in enumerate(csv.reader(lines), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 3 or not all(cells):
            raise DataError(f"{path}, line {number}: {','.join(row)!r} is not network,property,seconds.")
        try:
            timeout = float(cells[2])
        except ValueError:
            timeout = math.nan
        if not 0 < timeout < math.inf:
            raise DataError(f"{path}, line {number}: the time limit {cells[2]!r} is not a positive number of seconds.")
        found.append(Instance(_located(path.parent, cells[0]), _located(path.parent, cells[1]), timeout))
    if not found:
        raise DataError(f"{path} lists no instance.")
    return found


def _located(folder: Path, name: str) -> Path:
    path = folder / name
    packed = path.with_name(path.name + ".gz")
    return packed if not path.exists() and packed.exists() else path
