"""The list of a benchmark's instances."""

from __future__ import annotations

from pathlib import Path

import pytest

from ironbound.errors import DataError
from ironbound.spec import Instance, read_instances


def test_paths_are_relative_to_the_list_and_found_compressed(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx.gz", "p.vnnlib.gz"):
        (tmp_path / name).touch()
    path = tmp_path / "instances.csv"
    path.write_text("a.onnx,p.vnnlib,116\r\n\n ./b.onnx , missing.vnnlib , 1.5\n", encoding="utf-8")
    assert read_instances(path) == [
        Instance(tmp_path / "a.onnx", tmp_path / "p.vnnlib.gz", 116.0),
        Instance(tmp_path / "b.onnx.gz", tmp_path / "missing.vnnlib", 1.5),
    ]


@pytest.mark.parametrize(
    "line", ["a.onnx,p.vnnlib", "a,b,c,1", "a,,1", "a,b,soon", "a,b,0", "a,b,-1", "a,b,inf", "a,b,nan"]
)
def test_lines_that_make_no_sense_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.csv"
    path.write_text(f"a.onnx,p.vnnlib,1\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"instances\.csv, line 2: "):
        read_instances(path)


def test_no_list_and_an_empty_list(tmp_path: Path) -> None:
    path = tmp_path / "instances.csv"
    with pytest.raises(DataError, match="cannot be read"):
        read_instances(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="lists no instance"):
        read_instances(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="no text|not a text"):
        read_instances(path)


@pytest.mark.shared
def test_the_competitions_lists(shared: Path) -> None:
    paths = sorted((shared / "vnncomp").glob("*/instances.csv"))
    if not paths:
        pytest.skip("the shared folder has no competition lists")
    for path in paths:
        instances = read_instances(path)
        assert all(instance.network.exists() and instance.property.exists() for instance in instances)
