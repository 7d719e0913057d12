"""Find a data set's files in a folder, or download them; read them decompressed; verify their content."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from ironbound.data.catalogue import Entry, File
from ironbound.errors import DataError, HashMismatchError

ENVIRONMENT = "IRONBOUND_DATA"
_GZIP_MAGIC = b"\x1f\x8b"


def read(path: Path) -> bytes:
    """Read a file whole, decompressed if its first bytes say gzip, whatever its name says.

    Args:
        path: the file.

    Returns:
        The decompressed content, never empty.

    Raises:
        DataError: the file is missing, unreadable, empty, or a gzip stream that is cut short or damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the folder.") from error
    if raw.startswith(_GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path} is a gzip file that is truncated or damaged ({error}); get it again.") from error
    if not raw:
        raise DataError(f"{path} is empty; get it again.")
    return raw


def is_official(content: bytes, file: File) -> bool:
    """Tell whether a file's decompressed content is the published one.

    Args:
        content: decompressed bytes.
        file: the catalogue's line.

    Returns:
        True where the hash is the official one.
    """
    return hashlib.new(file.algorithm, content, usedforsecurity=False).hexdigest() == file.hash


def require_official(content: bytes, file: File, path: Path) -> None:
    """Refuse content that is not the published one.

    Args:
        content: decompressed bytes.
        file: the catalogue's line.
        path: where the content came from, for the message.

    Raises:
        HashMismatchError: another hash.
    """
    if not is_official(content, file):
        raise HashMismatchError(
            f"{path} is not the official {file.name}: the {file.algorithm} of what it holds is not {file.hash}; "
            "get it again, or pass verify=False if you mean to use it."
        )


def locate(folder: Path, file: File) -> Path | None:
    """Find one file in a folder under its official name or an alias.

    Args:
        folder: where to look; sub-folders are not searched.
        file: the catalogue's line.

    Returns:
        The path, or None.
    """
    return next((folder / name for name in (file.name, *file.aliases) if (folder / name).is_file()), None)


def candidates(root: str | os.PathLike[str] | None, name: str, folders: Iterable[str]) -> tuple[list[Path], bool]:
    """List the local folders that may hold a data set, best first.

    Args:
        root: the user's folder; None takes the environment variable.
        name: name of the data set, tried as a sub-folder.
        folders: further sub-folders to try.

    Returns:
        The existing folders, and whether the user named the root (then nothing else may be used instead).

    Raises:
        DataError: the named root is not a folder.
    """
    given = root is not None
    base = Path(root) if root is not None else Path(os.environ.get(ENVIRONMENT) or os.devnull)
    if given and not base.is_dir():
        raise DataError(f"{base} is not a folder; name the one that holds the files of {name}.")
    places = [base / name, *(base / folder for folder in folders), *(base / name / folder for folder in folders), base]
    return [place for place in places if place.is_dir()], given


def find(entry: Entry, split: str, root: str | os.PathLike[str] | None) -> tuple[list[tuple[File, Path]], bool]:
    """Find the files of one split: in the user's folder, then in IRONBOUND_DATA, then in the cache, else by download.

    Args:
        entry: the catalogue's data set.
        split: "train" or "test".
        root: the user's folder or None.

    Returns:
        Each file that was found with its path, and whether they come from the cache. A local folder may lack some
        files: the reader of the format decides whether it can go on.

    Raises:
        DataError: none of the files is in the named folder, or the download failed.
    """
    wanted = entry.files[split]
    places, given = candidates(root, entry.name, entry.folders)
    for place in places:
        found = [(file, path) for file in wanted if (path := locate(place, file)) is not None]
        if found:
            return found, False
    if given:
        looked = ", ".join(file.name for file in wanted)
        raise DataError(
            f"{root} holds none of the {split} files of {entry.name} ({looked}), neither itself nor in a sub-folder "
            f"named {entry.name}; name the folder that does."
        )
    return _cached(entry, split), True


def cache(name: str) -> Path:
    """Give the per-user folder for downloads of one data set.

    Args:
        name: name of the data set.

    Returns:
        The folder, which need not exist.
    """
    import pooch

    return Path(pooch.os_cache("ironbound")) / name


def _cached(entry: Entry, split: str) -> list[tuple[File, Path]]:
    folder = cache(entry.name)
    wanted = entry.files[split]
    missing = [file for file in wanted if locate(folder, file) is None]
    if missing and entry.archive:
        _unpack(_download((entry.archive,), folder, entry.name), entry, folder)
    else:
        for file in missing:
            path = _download(file.urls, folder, entry.name)
            try:
                require_official(read(path), file, path)
            except DataError:
                path.unlink()  # a bad download must not be taken for a cached file next time
                raise
    return [(file, path) for file in wanted if (path := locate(folder, file)) is not None]


def _download(urls: tuple[str, ...], folder: Path, name: str) -> Path:
    import pooch
    import requests

    failures = []
    for url in urls:
        try:  # no known_hash: pooch would hash the compressed bytes, which differ between honest copies
            return Path(pooch.retrieve(url, known_hash=None, fname=url.rsplit("/", 1)[1], path=folder))
        except (requests.RequestException, OSError, ValueError) as error:
            failures.append(f"{url}: {type(error).__name__}")
    raise DataError(
        f"{name} is not on this machine and could not be downloaded ({'; '.join(failures)}); "
        f"name a folder that holds its files, or set {ENVIRONMENT}."
    )


def _unpack(archive: Path, entry: Entry, folder: Path) -> None:
    """Copy the known members out of an archive; they are matched by file name, so none of its paths is used."""
    wanted = {file.name: file for files in entry.files.values() for file in files}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = wanted.get(member.name.rsplit("/", 1)[-1])
                stream = tar.extractfile(member) if file is not None else None
                if file is None or stream is None:
                    continue
                content = stream.read()
                require_official(content, file, archive)
                partial = folder / f"{file.name}.partial"
                partial.write_bytes(content)
                partial.replace(folder / file.name)
                del wanted[file.name]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} is not a whole tar archive ({error}); try again to download it.") from error
    finally:
        archive.unlink()
    if wanted:
        raise DataError(f"the archive of {entry.name} lacks {', '.join(sorted(wanted))}; try again to download it.")
