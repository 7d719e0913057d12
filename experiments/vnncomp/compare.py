"""Runs benchmarks of the verification competition and puts our verdicts beside those known: a table and JSON.

    python experiments/vnncomp/compare.py --data-dir VNNCOMP --benchmarks acasxu rl_benchmarks --cap 60 --out RUNS

The data folder holds a folder per benchmark (instances.csv, onnx, vnnlib), `verdicts.csv` (what the competition's tools
answered: benchmark, onnx, vnnlib, n_sat, n_unsat) and, for --sample, `winner_on_two_cpu_cores_60s.csv` (the winner's
verdicts and seconds on two CPU cores). Every instance runs in a process of its own, as `ironbound verify` does it; its
result is kept in --out at once, and a run that was stopped resumes with the same command. Any answer that known ones
contradict is printed and counted: "contradicted by all" would be a defect, "disputed" means that the competition's
tools contradict each other.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ironbound
from ironbound.instances_run import RunOptions, run_instances
from ironbound.instances_store import InstanceResult
from ironbound.report.verdicts import summary

WINNER = "winner_on_two_cpu_cores_60s.csv"
Key = tuple[str, str, str]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the benchmarks' folders")
    parser.add_argument("--benchmarks", nargs="+", required=True, help="names of folders")
    parser.add_argument("--cap", type=float, help="most seconds per instance (the list's limits)")
    parser.add_argument("--sample", action="store_true", help=f"only the instances of {WINNER}")
    parser.add_argument("--threads", type=int, help="CPU threads per process (torch chooses)")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps each result as it comes, to resume")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="description to record")
    parser.add_argument("--result", type=Path, help="JSON file (results/BENCHMARK.json beside this script)")
    return parser.parse_args()


def known_verdicts(path: Path) -> dict[Key, tuple[int, int]]:
    """How many tools said sat, and how many unsat."""
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {(row["benchmark"], row["onnx"], row["vnnlib"]): (int(row["n_sat"]), int(row["n_unsat"])) for row in rows}


def winners(path: Path) -> dict[Key, dict[str, str]]:
    """The winner's verdict and seconds."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as lines:
        return {(row["benchmark"], row["onnx"], row["vnnlib"]): row for row in csv.DictReader(lines)}


def judged(verdict: str, sat: int, unsat: int) -> str:
    """How an answer stands to those of the competition's tools."""
    if verdict not in {"sat", "unsat"}:
        return "open"
    agree, against = (sat, unsat) if verdict == "sat" else (unsat, sat)
    if against:
        return "disputed" if agree else "CONTRADICTED BY ALL"
    return "agrees" if agree else "new"


def run(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One benchmark."""
    known, winner = known_verdicts(given.data_dir / "verdicts.csv"), winners(given.data_dir / WINNER)
    sample = {f"{network} {prop}": 0 for benchmark, network, prop in winner if benchmark == name}

    def progress(result: InstanceResult, done: int, total: int) -> None:
        print(f"{name} {done}/{total} {result.verdict} {result.seconds:.1f} s", file=sys.stderr)

    only = ()
    if given.sample:  # names may carry .gz in the list
        only = tuple({key for plain in sample for key in (plain, plain.replace(" ", ".gz ") + ".gz")})
    chosen = RunOptions(cap=given.cap, only=only, threads=given.threads)
    results = run_instances(given.data_dir / name / "instances.csv", chosen, given.out / name, progress)
    rows = []
    for result in results:
        key = (name, result.network.removesuffix(".gz"), result.property.removesuffix(".gz"))
        sat, unsat = known.get(key, (0, 0))
        row: dict[str, Any] = {"network": key[1], "property": key[2], "verdict": result.verdict}
        row |= {"seconds": round(result.seconds, 2), "sat": sat, "unsat": unsat}
        row["judgement"] = judged(result.verdict, sat, unsat)
        if key in winner:
            row["winner"], row["winner_seconds"] = winner[key]["verdict"], float(winner[key]["seconds"])
        rows.append(row)
    judgements = [row["judgement"] for row in rows]
    return {
        "benchmark": name,
        "cap": given.cap,
        "summary": summary(results),
        "judgements": {judgement: judgements.count(judgement) for judgement in sorted(set(judgements))},
        "instances": rows,
    }


def main() -> None:
    """Runs, prints and records."""
    given = options()
    for name in given.benchmarks:
        found = run(name, given)
        for row in found["instances"]:
            if row["judgement"] in {"disputed", "CONTRADICTED BY ALL"}:
                print(f"{row['judgement']}: {row}")
        print(json.dumps({key: found[key] for key in ("benchmark", "summary", "judgements")}, indent=1))
        both = [row for row in found["instances"] if "winner" in row]
        if both:
            ours = sum(row["verdict"] in {"sat", "unsat"} for row in both)
            theirs = sum(row["winner"] in {"sat", "unsat"} for row in both)
            mean = [sum(row[key] for row in both) / len(both) for key in ("seconds", "winner_seconds")]
            print(f"of {len(both)}: we decide {ours} (mean {mean[0]:.1f} s), the winner {theirs} ({mean[1]:.1f} s)")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found |= {"machine": given.machine, "recorded": now, "ironbound": ironbound.__version__}
        path = given.result or Path(__file__).parent / "results" / f"{name}{'_sample' if given.sample else ''}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
