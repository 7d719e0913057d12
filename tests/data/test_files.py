"""Where files are looked for, and downloads: from a server on this machine, verified by what they hold."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ironbound.data import catalogue, load, names
from ironbound.errors import DataError, HashMismatchError, InputError

SIZES = {"t10k-images-idx3-ubyte": (2, 28, 28), "t10k-labels-idx1-ubyte": (2,)}
CONTENT = {
    name: struct.pack(f">HBB{len(sizes)}I", 0, 8, len(sizes), *sizes) + bytes(int(np.prod(sizes)))
    for name, sizes in SIZES.items()
}


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Serve a folder; the per-user cache is a fresh one."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("IRONBOUND_DATA", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/", folder
        http.shutdown()
        thread.join()


@pytest.fixture
def mnist(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let MNIST's URLs point to the server: first a mirror that lacks the files."""
    url, folder = server
    files = tuple(
        replace(
            file,
            hash=hashlib.sha256(CONTENT[file.name]).hexdigest(),
            urls=(f"{url}gone/{file.name}.gz", f"{url}{file.name}.gz"),
        )
        for file in catalogue.MNIST.files["test"]
    )
    monkeypatch.setitem(catalogue.ENTRIES, "mnist", replace(catalogue.MNIST, files={"test": files}))
    for name, content in CONTENT.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=7))
    return folder


def test_a_download_is_verified_by_content_and_kept(mnist: Path) -> None:
    first = load("mnist")
    assert (len(first), first.notes) == (2, ())
    for file in mnist.iterdir():
        file.unlink()
    assert load("mnist").digest == first.digest  # from the cache


def test_a_download_of_other_content_is_refused_and_not_kept(mnist: Path) -> None:
    path = mnist / "t10k-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(gzip.compress(CONTENT["t10k-labels-idx1-ubyte"][:-1] + b"\x01"))
    with pytest.raises(HashMismatchError):
        load("mnist", verify=False)  # a download is verified in any case
    path.write_bytes(good)
    assert len(load("mnist")) == 2


def test_a_cut_download_is_refused_and_not_kept(mnist: Path) -> None:
    path = mnist / "t10k-images-idx3-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    with pytest.raises(DataError, match="truncated or damaged"):
        load("mnist")
    path.write_bytes(good)
    assert len(load("mnist")) == 2


def test_no_mirror_answers(mnist: Path) -> None:
    for file in mnist.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"could not be downloaded.*IRONBOUND_DATA"):
        load("mnist")


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def cifar(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, bytes]]:
    url, folder = server
    wanted = [file for files in catalogue.CIFAR10.files.values() for file in files]
    contents = {
        file.name: pickle.dumps({b"data": np.full((2, 3072), index, np.uint8), b"labels": [index, 9]})
        for index, file in enumerate(wanted)
    }
    files = {
        split: tuple(replace(file, hash=hashlib.md5(contents[file.name]).hexdigest()) for file in listed)
        for split, listed in catalogue.CIFAR10.files.items()
    }
    entry = replace(catalogue.CIFAR10, files=files, archive=f"{url}cifar.tar.gz")
    monkeypatch.setitem(catalogue.ENTRIES, "cifar10", entry)
    return folder / "cifar.tar.gz", contents


def test_an_archive_is_unpacked_by_file_name_alone(cifar: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    path, contents = cifar
    members = {f"../../outside/{name}": content for name, content in contents.items()}
    path.write_bytes(archive({"../evil": b"not wanted", **members}))
    assert load("cifar10", "train").labels[::2].tolist() == [0, 1, 2, 3, 4]
    path.unlink()
    assert load("cifar10", "test").labels.tolist() == [5, 9]  # unpacked by the first call
    cached = {file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert cached == set(contents)  # nothing else, and the archive is gone
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("case", ["changed", "cut", "lacking", "no archive"])
def test_bad_archives_are_refused_and_not_kept(cifar: tuple[Path, dict[str, bytes]], case: str) -> None:
    path, contents = cifar
    whole = archive(contents)
    changed = {**contents, "test_batch": contents["test_batch"][:-1] + b"!"}
    lacking = {name: content for name, content in contents.items() if name != "data_batch_3"}
    served = {
        "changed": (archive(changed), HashMismatchError),
        "cut": (whole[: len(whole) // 2], DataError),
        "lacking": (archive(lacking), DataError),
        "no archive": (b"<html>", DataError),
    }
    content, expected = served[case]
    path.write_bytes(content)
    with pytest.raises(expected):
        load("cifar10", "train")
    path.write_bytes(whole)
    assert len(load("cifar10", "train")) == 10


def plain(folder: Path, label: int) -> Path:
    """Write the test files of MNIST, uncompressed, with one label for all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content[:-2] + bytes([label] * 2) if "labels" in name else content)
    return folder


@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw", "mnist/MNIST/raw"])
def test_a_root_is_searched_itself_and_below(tmp_path: Path, sub: str) -> None:
    plain(tmp_path / sub, 4)
    assert load("mnist", root=tmp_path, verify=False).labels.tolist() == [4, 4]


def test_the_order_is_root_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = plain(tmp_path / "one" / "mnist", 1), plain(tmp_path / "two", 2)
    monkeypatch.setenv("IRONBOUND_DATA", str(one.parent))
    assert load("mnist", verify=False).labels.tolist() == [1, 1]
    assert load("mnist", root=two, verify=False).labels.tolist() == [2, 2]


def test_a_named_root_without_the_files_is_an_error_not_a_download(
    tmp_path: Path, mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IRONBOUND_DATA", str(plain(tmp_path / "env", 3)))
    with pytest.raises(DataError, match="holds none of the test files of mnist"):
        load("mnist", root=tmp_path / "served" / "..")
    with pytest.raises(DataError, match="is not a folder"):
        load("mnist", root=tmp_path / "absent")


def test_unknown_names_splits_and_limits_are_refused() -> None:
    for arguments in ({"name": "imagenet"}, {"name": "digits", "split": "all"}, {"name": "digits", "limit": 0}):
        with pytest.raises(InputError):
            load(**arguments)  # type: ignore[arg-type]


def test_names_are_those_of_the_documentation() -> None:
    assert names() == ("digits", "mnist", "fashion-mnist", "cifar10", "svhn", "har")
    assert load("DIGITS", limit=1).name == "digits"


def test_hashes_of_the_catalogue_have_the_length_of_their_algorithm() -> None:
    files = [file for entry in catalogue.ENTRIES.values() for listed in entry.files.values() for file in listed]
    assert len(files) == 16
    assert len({file.hash for file in files}) == 16
    for file in files:
        assert len(file.hash) == 2 * hashlib.new(file.algorithm).digest_size
        int(file.hash, 16)
