"""`ironbound verify`."""

from __future__ import annotations

import json as encoding
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ironbound.cli import options as given
from ironbound.cli.session import exit_codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ironbound.bounding import Arithmetic
    from ironbound.instances_run import RunOptions
    from ironbound.verdicts import Verdict

_RESERVE = 0.25  # seconds before the limit at which the answer is "timeout", whatever is under way


def verify(
    context: typer.Context,
    network: Annotated[Path | None, typer.Argument(help="Network (.onnx, .onnx.gz).", show_default=False)] = None,
    prop: Annotated[
        Path | None, typer.Argument(metavar="PROPERTY", help="Property (.vnnlib, .vnnlib.gz).", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds per question, start-up included (default 60; a list has its own, this caps them)."),
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(help="instances.csv of a benchmark: decide all of them, a process each.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a benchmark's results: the same command resumes there.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only instances whose file names hold this word.")] = None,
    memory: Annotated[int | None, typer.Option(help="Bytes for one step of the bounds (default 2 GiB).", min=1)] = None,
    seed: given.Seed = 0,
    certificates: Annotated[
        Path | None,
        typer.Option(help="Folder for certificates of a proved property: `ironbound check` proves them again."),
    ] = None,
    arithmetic: Annotated[
        str,
        typer.Option(
            help="What unsat shall mean: none, bounds above a guard; real, a proof in real arithmetic; float32, one "
            "for every run in float32 (docs/arithmetic.md)."
        ),
    ] = "none",
    json: given.Json = False,
    quiet: given.Quiet = False,
    threads: given.Threads = None,
) -> None:
    """Decide a property of an ONNX network: no input of it is a counterexample, or here is one.

    Prints unsat (proved), sat and the counterexample, unknown, or timeout: any answer ends with exit code 0.
    """
    wanted = None if arithmetic == "none" else arithmetic
    strict = certificates is not None or wanted is not None
    _check(network, prop, instances, timeout, out is not None or bool(only), strict)
    if instances is not None:
        from ironbound.instances_run import RunOptions

        _benchmark(instances, out, RunOptions(timeout, tuple(only or ()), memory, threads, seed), json, quiet)
        return
    assert network is not None and prop is not None
    program = isinstance(context.obj, float)  # else the command was called from inside another program
    end = (context.obj if program else time.monotonic()) + (60.0 if timeout is None else timeout)
    with exit_codes(), _Answer(end, json, program) as answer:
        answer.give(_decided(network, prop, end, (memory, seed, threads), (certificates, wanted), answer.keep))


def _check(
    network: Path | None,
    prop: Path | None,
    instances: Path | None,
    timeout: float | None,
    of_list: bool,
    of_one: bool,
) -> None:
    """Refuses options that do not go together."""
    if timeout is not None and not timeout > 0:
        raise typer.BadParameter("--timeout must be a positive number of seconds.")
    if instances is not None and (network is not None or prop is not None):
        raise typer.BadParameter("name a network and a property, or --instances, not both.")
    if instances is None and (network is None or prop is None):
        raise typer.BadParameter("name a network and a property, or --instances.")
    if instances is None and of_list:
        raise typer.BadParameter("--out and --only belong to --instances.")
    if instances is not None and of_one:
        raise typer.BadParameter("--certificates and --arithmetic belong to one network and property.")


def _decided(
    network: Path,
    prop: Path,
    end: float,
    options: tuple[int | None, int, int | None],
    proof: tuple[Path | None, str | None],
    keep: Callable[[Verdict], None],
) -> Verdict | None:
    """The verdict; None where loading alone took all of the time."""
    memory, seed, threads = options
    import torch

    from ironbound.verification import verify as decide

    if threads is not None:
        torch.set_num_threads(threads)
    left = end - 2 * _RESERVE - time.monotonic()
    if left <= 0:
        return None
    folder, wanted = proof
    arithmetic = cast("Arithmetic | None", wanted)  # verify refuses other words
    return decide(
        network, prop, left, memory=memory, seed=seed, certificates=folder, arithmetic=arithmetic, decided=keep
    )


class _Answer:
    """Prints exactly one answer: the verdict; shortly before the time is up the one kept so far, or "timeout".

    Args:
        end: a value of `time.monotonic()`.
        json: whether to print JSON.
        alone: whether the process is this program's own, and may be ended when the time is up.
    """

    def __init__(self, end: float, json: bool, alone: bool) -> None:
        self._json, self._lock, self._given = json, threading.Lock(), False
        self._kept: Verdict | None = None
        self._timer = threading.Timer(max(0.0, end - _RESERVE - time.monotonic()), self._late)
        self._timer.daemon = True
        self._alone = alone

    def __enter__(self) -> _Answer:
        if self._alone:
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def keep(self, verdict: Verdict) -> None:
        """Notes a verdict whose certificates are still looked for."""
        self._kept = verdict

    def give(self, verdict: Verdict | None) -> None:
        """Prints a verdict."""
        with self._lock:
            self._given = True
            self._print(verdict)

    def _late(self) -> None:
        with self._lock:
            if not self._given:
                self._print(self._kept)
                os._exit(0)  # a step of the search cannot be interrupted, and nothing is left to be done

    def _print(self, verdict: Verdict | None) -> None:
        sys.stdout.write(_json(verdict) if self._json else _text(verdict))
        sys.stdout.flush()
        if self._kept is not None:
            sys.stderr.write(_note(verdict))
            sys.stderr.flush()


def _note(verdict: Verdict | None) -> str:
    """What has become of the certificates of a proved property; nothing for other verdicts."""
    from ironbound.claims import PROVED
    from ironbound.verdicts import Proved

    if not isinstance(verdict, Proved):
        return ""
    if verdict.arithmetic == PROVED["real"]:
        return "ironbound: certificates of all clauses are written; `ironbound check` proves them again.\n"
    found = len(verdict.certificates)
    return f"ironbound: no certificates of all clauses were found in the time; written: {found}.\n"


def _text(verdict: Verdict | None) -> str:
    if verdict is None or verdict.word != "sat":
        return f"{'timeout' if verdict is None else verdict.word}\n"
    from ironbound.spec import counterexample_text

    return f"sat\n{counterexample_text(verdict.x, verdict.y)}"  # type: ignore[union-attr]


def _json(verdict: Verdict | None) -> str:
    if verdict is None:
        return '{"verdict": "timeout", "why": "time"}\n'
    from ironbound.verdicts import Proved, Refuted

    found: dict[str, Any] = {"verdict": verdict.word, "seconds": verdict.seconds, "subproblems": verdict.nodes}
    if isinstance(verdict, Refuted):
        text = _text(verdict).removeprefix("sat\n")
        found |= {"method": verdict.method, "checked_by": list(verdict.checked_by), "counterexample": text}
    elif isinstance(verdict, Proved):
        found |= {"method": verdict.method, "arithmetic": verdict.arithmetic}
        found |= {"certificates": len(verdict.certificates)} if verdict.certificates else {}
    else:
        gap = verdict.gap if abs(verdict.gap) < float("inf") else None
        found |= {"why": verdict.why, "gap": gap, "open": verdict.open}
    return encoding.dumps(found) + "\n"


def _benchmark(path: Path, folder: Path | None, options: RunOptions, json: bool, quiet: bool) -> None:
    from ironbound.instances_run import run_instances
    from ironbound.report.verdicts import print_verdicts, summary, write_csv

    done = 0

    def progress(result: Any, count: int, total: int) -> None:
        nonlocal done
        done = count
        if not quiet:
            line = f"{count}/{total} {result.verdict} {result.seconds:.1f} s {result.network} {result.property}"
            typer.echo(line, err=True)

    def kept() -> str:
        where = f"kept in {folder}: the same command resumes" if folder is not None else "not kept: --out would"
        return f" after {done} instances, which are {where}"

    with exit_codes(kept):
        results = run_instances(path, options, folder, progress)
        if folder is not None:
            write_csv(results, folder / "verdicts.csv")
        if json:
            rows = [{**vars(result), "details": dict(result.details)} for result in results]
            typer.echo(encoding.dumps({"summary": summary(results), "instances": rows}))
        else:
            print_verdicts(results)
