"""The `ironbound` program: its commands, and what they have in common."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Annotated

import typer

import ironbound
from ironbound.cli.attack import attack
from ironbound.cli.certify import certify
from ironbound.cli.check import check
from ironbound.cli.demo import demo
from ironbound.cli.radius import radius
from ironbound.cli.selftest import selftest
from ironbound.cli.train import train
from ironbound.cli.verify import verify

app = typer.Typer(
    name="ironbound",
    help="Prove that a classifier keeps its answer for every input within ε, attack what cannot be proved, and report.",
    epilog="Exit codes: 0 done, 1 an error (one sentence says what to do), 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _help(command: Callable) -> str:
    """A command's docstring without the section for those who call it from Python."""
    return (inspect.getdoc(command) or "").split("\n\nRaises:")[0]


for command in (demo, certify, attack, radius, train, verify, check, selftest):
    app.command(help=_help(command))(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ironbound {ironbound.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the program on the arguments of the process; commands with a time limit learn when that began."""
    app(obj=time.monotonic() - time.process_time())
