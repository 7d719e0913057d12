"""`python -m checker CERTIFICATES --network net.npz --data data.npz`: prints what is refused."""

from __future__ import annotations

import argparse
import os
import sys

from .checking import Checker
from .claims import File
from .files import arrays_of
from .layers import CertificateError
from .parallel import check_file


def main(arguments=None) -> int:
    """Runs the program; 0: all proved, 1: some refused, 2: a file cannot be used."""
    parser = argparse.ArgumentParser(prog="checker", description="Check certificates of robustness and of properties.")
    parser.add_argument("certificates", help="file of certificates")
    parser.add_argument("--network", required=True, help="network as an npz file")
    parser.add_argument("--data", required=True, help="inputs and labels, or a property, as an npz file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    options = parser.parse_args(arguments)
    try:
        file = File.read(options.certificates)
        checker = Checker(arrays_of(options.network), arrays_of(options.data))
        answers = check_file(checker, file, options.jobs)
    except (CertificateError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = checker.property
    missing = checker.missing(answers)
    refused = {index: answer for index, answer in answers.items() if answer is not None}
    for index, answer in refused.items():
        print(f"{'clause' if about else 'input'} {index}: refused: {answer}")
    print(f"{len(answers) - len(refused)} certificates proved, {len(refused)} refused ({file.norm}, {file.mode})")
    if about is not None:
        print(about.verdict(missing))
        return 1 if refused or missing else 0
    return 1 if refused or not answers else 0


if __name__ == "__main__":
    sys.exit(main())
