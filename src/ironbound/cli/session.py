"""What happens around a command: exit codes, one sentence per error, the progress bar."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import typer

from ironbound.errors import InputError, IronboundError

FAILED = 1
INTERRUPTED = 130


@contextmanager
def exit_codes(kept: Callable[[], str] | None = None) -> Generator[None, None, None]:
    """Ends the command with a sentence on stderr and its exit code: 1 for an error of ours, 130 for Ctrl-C.

    Args:
        kept: gives the rest of the sentence "interrupted …": what is done, and where it is kept.

    Yields:
        Nothing.

    Raises:
        Exit: with the code.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="ironbound")  # the data's notes are reported
            yield
    except IronboundError as error:
        typer.echo(f"ironbound: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        typer.echo(f"ironbound: interrupted{'' if kept is None else kept()}.", err=True)
        raise typer.Exit(INTERRUPTED) from error


class Watch:
    """A progress bar on stderr that counts the statuses.

    Args:
        quiet: show nothing.
        store: where results are kept.
    """

    def __init__(self, quiet: bool, store: Path | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[counts]}"),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("certifying", total=None, counts="")
        self._store = store
        self._done, self._total = 0, 0

    def __call__(self, done: int, total: int, counts: Mapping[str, int]) -> None:
        """Shows how many examples are done, and with which status."""
        self._done, self._total = done, total
        text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        self._bar.update(self._task, completed=done, total=total, counts=text)

    def kept(self) -> str:
        """The rest of the sentence "interrupted …"."""
        if not self._total:
            return " before the first result"
        if self._store is None:
            return f" after {self._done} of {self._total} examples; nothing is kept: --store FILE would keep it"
        from ironbound.store import finished_examples

        done = finished_examples(self._store)  # the interrupt may have come between writing and counting
        return f" after {done} of {self._total} examples, which are kept in {self._store}: the same command resumes"

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def parse_pair(option: str, text: str) -> tuple[float, float]:
    """Reads "0,1".

    Args:
        option: the option's name.
        text: its value.

    Returns:
        The two numbers.

    Raises:
        InputError: not two numbers.
    """
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} must be two numbers such as 0,1, got {text!r}.") from None
    return first, second


def parse_clip(text: str | None) -> tuple[float, float] | None:
    """Reads the value of --clip, which may be absent."""
    return None if text is None else parse_pair("--clip", text)


def parse_range(text: str | None, limit: int | None, examples: int) -> tuple[int, int]:
    """Reads "100:200", or a limit.

    Args:
        text: the value of --range.
        limit: the value of --limit.
        examples: how many there are.

    Returns:
        First example, and the one after the last.

    Raises:
        InputError: not a range, an empty one, or both options at once.
    """
    if text is None:
        return 0, examples if limit is None else min(limit, examples)
    if limit is not None:
        raise InputError("give --range or --limit, not both.")
    try:
        first, last = (int(part) if part else None for part in text.split(":"))
    except ValueError:
        raise InputError(f"--range must be A:B with whole numbers, such as 100:200, got {text!r}.") from None
    start, stop = first or 0, examples if last is None else min(last, examples)
    if not 0 <= start < stop:
        raise InputError(f"--range {text} holds none of the {examples} examples.")
    return start, stop
