"""`ironbound check`."""

from __future__ import annotations

import json as encoding
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from ironbound.cli import options as given
from ironbound.cli.session import exit_codes


def check(
    file: Annotated[Path, typer.Argument(help="Certificates (.ibc), or the folder that `write_certificates` wrote.")],
    network: Annotated[
        Path | None, typer.Option(help="Network (.npz; default: network.npz beside the certificates).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Inputs and labels, or a property (.npz; default: data.npz beside the certificates)."),
    ] = None,
    eps: Annotated[float | None, typer.Option(help="Refuse claims for a smaller radius than this.", min=0.0)] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes (default: one for each core).", min=1, show_default=False)
    ] = None,
    json: given.Json = False,
) -> None:
    """Check certificates by recomputing every bound with outward rounding; numpy is all it needs.

    Exit code 0: all are proved. 1: a file cannot be used, or a certificate is refused.

    Raises:
        Exit: with that code.
    """
    with exit_codes():
        report = _checked(file, network, data, eps, jobs or os.cpu_count() or 1)
        if json:
            typer.echo(encoding.dumps(report))
        else:
            kind = "input" if report["property"] is None else "clause"
            for index, why in report["refused"].items():
                typer.echo(f"{kind} {index}: refused: {why}")
            typer.echo(
                f"{report['proved']} certificates proved, {len(report['refused'])} refused "
                f"({report['norm']}, {report['arithmetic']} arithmetic, {report['seconds']} s)"
            )
            if report["property"] is not None:
                typer.echo(report["property"]["verdict"])
    failed = not report["proved"] if report["property"] is None else report["property"]["missing"]
    if report["refused"] or failed:
        raise typer.Exit(1)


def _checked(path: Path, network: Path | None, data: Path | None, eps: float | None, jobs: int) -> dict:
    """The report, as plain data."""
    from ironbound.certificate.checker import CertificateError as Refusal
    from ironbound.certificate.checker import Checker, File, arrays_of, check_file
    from ironbound.errors import CertificateError, InputError

    start = time.monotonic()
    path = path / "certificates.ibc" if path.is_dir() else path
    try:
        file = File.read(path)
        arrays = arrays_of(network or path.parent / "network.npz"), arrays_of(data or path.parent / "data.npz")
        checker = Checker(*arrays)
        answers = check_file(checker, file, jobs)
    except (Refusal, OSError) as error:
        raise CertificateError(f"{path} cannot be checked: {error}.") from error
    if eps is not None and checker.property is not None:
        raise InputError("--eps is about balls around inputs; these certificates are about a property")
    small = {one.index for one in file.certificates if eps is not None and one.eps < eps}
    refused = {index: f"its radius is below {eps:g}" for index in small} | {k: why for k, why in answers.items() if why}
    about, missing = checker.property, checker.missing(answers)
    return {
        "format": "ironbound-check/1",
        "proved": len(answers) - len(refused),
        "refused": {str(index): refused[index] for index in sorted(refused)},
        "property": None if about is None else {"missing": missing, "verdict": about.verdict(missing)},
        "norm": file.norm,
        "arithmetic": file.mode,
        "clip": None if file.clip[0] != file.clip[0] else list(file.clip),
        "eps": sorted({one.eps for one in file.certificates}),
        "least_margin": min((one.margin for one in file.certificates), default=None),
        "network_sha256": file.network.hex(),
        "data_sha256": file.data.hex(),
        "seconds": round(time.monotonic() - start, 3),
    }
