"""Ironbound and its peers, the same computations interleaved in one process: run `python -m benchmarks.peers --help`.

The sides' numbers are compared in every measurement, so that a fast wrong one is noticed, and our time is set beside
its arithmetic floor: the operations counted by hand, at the speed that a matrix product reaches in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import ironbound as ib
from benchmarks import timing, workload
from benchmarks.contestants import AutoLirpa, Contestant, field, find_peers

OURS = "ironbound"
RESULTS = Path(__file__).parent / "results"
COMMON_BATCH = 16
TOLERANCE = 1e-4  # of the larger of 1 and the scale of the numbers compared


@dataclass(frozen=True)
class Task:
    """One computation that all sides do.

    Attributes:
        title: what the table calls it.
        network: `small` or `large`.
        method: `dual`, `dual projected`, `alpha`, `interval` or `crown-ibp`.
        backward: whether the gradient of the robust loss in all weights is part of it.
        images: how many images one call works on.
        batches: what a peer may choose its best batch size from; None for the whole call at once (a training step).
        rivals: the peers that take part.
        goals: the ratios that the project promises, by peer.
    """

    title: str
    network: str
    method: str
    backward: bool
    images: int
    batches: tuple[int, ...] | None
    rivals: tuple[str, ...]
    goals: dict[str, float]


def tasks(quick: bool) -> list[Task]:
    """The measurements, with fewer images in a quick run."""
    both, lirpa = ("convex_adversarial", "auto_LiRPA"), ("auto_LiRPA",)
    n, few, sizes = (16, 4, (1, 4, 16)) if quick else (64, 16, (1, 2, 4, 8, 16, 32))
    return [
        Task("bounds forward", "small", "dual", False, n, sizes, both, {both[0]: 20, both[1]: 13}),
        Task("robust loss, forward + backward", "small", "dual", True, n, sizes, both, {both[0]: 25, both[1]: 10}),
        Task("projected loss, k = 50, forward + backward", "small", "dual projected", True, n, sizes, both[:1], {}),
        Task("slopes optimised, 20 iterations", "small", "alpha", False, few, (1, 2, 4, 8, 16), lirpa, {both[1]: 15}),
        Task("bounds forward", "large", "dual", False, few, (1, 2, 4, 8, 16), lirpa, {both[1]: 3}),
        Task("interval step, batch 128", "small", "interval", True, 128, None, lirpa, {both[1]: 1.3}),
        Task("CROWN-IBP step, batch 128", "small", "crown-ibp", True, 128, None, lirpa, {both[1]: 1}),
    ]


def forward(side: Contestant, method: str, batch: int, x: Tensor, labels: Tensor) -> Tensor:
    """Margins [images, classes] without gradients, `batch` images at a time."""
    with torch.set_grad_enabled(method == "alpha" and side.name == AutoLirpa.name):  # its ascent needs them
        return torch.cat(
            [side.margins(method, part, y) for part, y in zip(x.split(batch), labels.split(batch), strict=True)]
        )


def loss_and_gradient(side: Contestant, method: str, batch: int, x: Tensor, labels: Tensor) -> Tensor:
    """The mean robust cross entropy and its gradient in all weights, as one flat vector, `batch` images at a time."""
    weights = side.parameters()
    for weight in weights:
        weight.grad = None
    total = torch.zeros(())
    for part, y in zip(x.split(batch), labels.split(batch), strict=True):
        loss = functional.cross_entropy(-side.margins(method, part, y), y, reduction="sum") / len(x)
        loss.backward()
        total += loss.detach()
    grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    return torch.cat([total.view(1), *(grad.flatten() for grad in grads)])


def best_batch(run: Callable[..., Tensor], sizes: tuple[int, ...], x: Tensor, labels: Tensor) -> int:
    """The batch size with the least time per image, the sizes tried in turn on a batch or a few images."""
    counts = {size: max(size, min(4, len(x))) for size in sizes if size <= len(x)}
    calls = {str(size): partial(run, size, x[:count], labels[:count]) for size, count in counts.items()}
    times = timing.interleaved(calls, rounds=3)
    return min(counts, key=lambda size: min(times[str(size)]) / counts[size])


def agreement(task: Task, ours: Tensor, side: Contestant, theirs: Tensor, x: Tensor, labels: Tensor) -> dict[str, Any]:
    """Largest absolute difference to a peer, the scale of the numbers compared, and whether that is agreement."""
    if isinstance(side, AutoLirpa) and task.method == "dual" and not task.backward:
        with torch.no_grad():
            count = min(len(x), 16)
            ours, theirs = ours[:count], side.exact_dual(x[:count], labels[:count])
    if task.method == "dual projected":
        return {
            "difference": float("nan"),
            "scale": float("nan"),
            "agrees": True,
        }  # other random numbers: nothing to compare
    if task.method == "alpha":  # two searches: no better mean of the lower bounds than ours is asked of the peer
        difference, scale = (theirs - ours).mean().item(), theirs.abs().max().item()
        return {"difference": difference, "scale": scale, "agrees": difference <= TOLERANCE}
    difference, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    return {"difference": difference, "scale": scale, "agrees": difference <= TOLERANCE * max(1.0, scale)}


def floor_flop(task: Task, network: nn.Module, x: Tensor, eps: float) -> float:
    """Arithmetic per image that the task needs at least; a backward pass costs twice the forward one."""
    counts = {
        "dual": partial(workload.dual_floor_flop, network, x, eps),
        "dual projected": partial(workload.dual_floor_flop, network, x, eps),  # of the exact loss, for comparison
        "alpha": partial(workload.dual_floor_flop, network, x, eps),  # of its first iteration
        "interval": partial(workload.interval_floor_flop, network, x),
        "crown-ibp": partial(workload.crown_ibp_floor_flop, network, x),
    }
    return counts[task.method]() * (3 if task.backward else 1)


def measure(task: Task, sides: list[Contestant], x: Tensor, labels: Tensor, rounds: int) -> dict[str, Any]:
    """Time one task at the current number of threads, and compare the sides' numbers."""
    step = loss_and_gradient if task.backward else forward
    sides = [side for side in sides if side.name == OURS or side.name in task.rivals]
    calls, batches = {}, {}
    for side in sides:
        run = partial(step, side, task.method)
        # Ironbound gets all images in one call, as a user would give them, and cuts them itself.
        whole = side.name == OURS or task.batches is None
        best = len(x) if whole else best_batch(run, task.batches or (), x, labels)
        for batch in (best,) if whole else dict.fromkeys((best, min(COMMON_BATCH, len(x)))):
            label = side.name if batch == best else f"{side.name}, batch {batch}"
            batches[label] = batch
            calls[label] = partial(run, batch, x, labels)
    numbers = {side.name: calls[side.name]() for side in sides}
    times = timing.interleaved(calls, rounds)
    return {
        "batch": batches,
        "ms_per_image": {name: statistics.median(rows) * 1e3 / len(x) for name, rows in times.items()},
        "ms_per_call": {name: statistics.median(rows) * 1e3 for name, rows in times.items()},
        "rounds_s": times,
        "ratio": {name: timing.ratio(rows, times[OURS]) for name, rows in times.items() if name != OURS},
        "agreement": {
            side.name: agreement(task, numbers[OURS], side, numbers[side.name], x, labels) for side in sides[1:]
        },
        "peak_memory_mib": {name: timing.peak_memory_mib(call) for name, call in calls.items()},
    }


def with_floor(row: dict[str, Any], flop: float, gflops: float) -> dict[str, Any]:
    """Add the arithmetic floor to a measurement."""
    floor_ms = flop / gflops / 1e6
    row["floor"] = {
        "mflop_per_image": flop / 1e6,
        "matmul_gflops": gflops,
        "ms_per_image": floor_ms,
        "times_above": row["ms_per_image"][OURS] / floor_ms,
    }
    return row


def networks(args: argparse.Namespace, names: set[str]) -> dict[str, tuple[nn.Module, str]]:
    """The networks asked for, each with a line that says where its weights come from."""
    made = {}
    for name in sorted(names):
        path = {"small": args.weights, "large": args.large_weights}[name]
        network = ib.models.build(name)
        if path is None:
            network = workload.briefly_trained(name, args.data_dir, args.eps, args.train_steps, args.seed)
            origin = f"interval training, {args.train_steps} batches of 64, seed {args.seed}"
        else:
            ib.models.load_weights(network, path)
            origin = path.name
        made[name] = (network.eval(), origin)
    return made


def machine() -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show(row: dict[str, Any]) -> None:
    """Print one measurement as a few lines of the table."""
    task = row["task"]
    floor = row["floor"]
    print(f"\n{task['network']}: {task['title']}, {row['threads']} thread{'s' * (row['threads'] > 1)}")
    for name, ms in row["ms_per_image"].items():
        line = f"  {name:<30}{ms:>10.3f} ms/image   batch {row['batch'][name]:>3}"
        line += f"   peak {row['peak_memory_mib'][name]:>6.0f} MiB"
        if name in row["ratio"]:
            goal = task["goals"].get(name)
            wanted = f" (goal {goal:g}x)" if goal else ""
            line += f"   {row['ratio'][name]['median']:>7.2f}x{wanted}"
        if name in row["agreement"] and task["method"] != "dual projected":
            check = row["agreement"][name]
            verdict = "" if check["agrees"] else "  DISAGREES"
            line += f"   difference {check['difference']:.1e} of {check['scale']:.1e}{verdict}"
        print(line)
    print(
        f"  {'floor':<30}{floor['ms_per_image']:>10.3f} ms/image   {floor['mflop_per_image']:.1f} MFLOP at "
        f"{floor['matmul_gflops']:.0f} GFLOP/s; ironbound is {floor['times_above']:.1f}x above it"
    )


def profile(task: Task, side: Contestant, x: Tensor, labels: Tensor) -> None:
    """Print where the time of one call goes, by PyTorch operation."""
    step = loss_and_gradient if task.backward else forward
    step(side, task.method, len(x), x, labels)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        step(side, task.method, len(x), x, labels)
    print(f"\n{task.network}: {task.title}")
    print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--peers", type=Path, help="folder with the peers' checkouts; else they are found on PYTHONPATH"
    )
    parser.add_argument("--weights", type=Path, help="weights of `small`; else it is trained briefly")
    parser.add_argument("--large-weights", type=Path, help="weights of `large`; else it is trained briefly")
    parser.add_argument("--data-dir", type=Path, help="folder with the MNIST files; else they are downloaded")
    parser.add_argument("--eps", type=float, default=0.1, help="radius of the l-inf ball (default 0.1)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default 1 2)")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (default 7, quick 3)")
    parser.add_argument("--train-steps", type=int, help="batches of the brief training (default 300, quick 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", default=[], help="words that a measurement's network, method or title must contain"
    )
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds; not for quoting")
    parser.add_argument("--profile", action="store_true", help="show where our time goes instead of comparing")
    parser.add_argument("--output", type=Path, help="result file (default benchmarks/results/peers.json)")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (3 if args.quick else 7)
    args.train_steps = args.train_steps or (60 if args.quick else 300)
    args.output = args.output or RESULTS / ("peers-quick.json" if args.quick else "peers.json")
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The command line as recorded: names of files without their folders, which mean nothing elsewhere."""
    return {
        key: value.name if isinstance(value, Path) else value for key, value in vars(args).items() if value is not None
    }


def chosen(args: argparse.Namespace) -> list[Task]:
    """The measurements that `--only` leaves."""
    return [
        task
        for task in tasks(args.quick)
        if all(word.lower() in f"{task.network} {task.method} {task.title}".lower() for word in args.only)
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the measurements, print a table and write the results; 1 when a peer's numbers disagree with ours."""
    args = parse(argv)
    todo = chosen(args)
    if not todo:
        print(f"no measurement matches --only {' '.join(args.only)}", file=sys.stderr)
        return 2
    peers = {} if args.profile else find_peers(args.peers)
    about = machine()
    torch.set_num_threads(1)  # the same weights whatever --threads says
    pool = networks(args, {task.network for task in todo})
    x, labels = workload.images(args.data_dir, max(task.images for task in todo))
    sides = {name: field(network, args.eps, x[:2], peers) for name, (network, _) in pool.items()}
    flops = {id(task): floor_flop(task, pool[task.network][0], x[: task.images], args.eps) for task in todo}
    record = {
        "command": {"program": "python -m benchmarks.peers", "settings": settings(args)},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": about,
        "versions": {OURS: ib.__version__, **peers},
        "networks": {name: origin for name, (_, origin) in pool.items()},
        "results": [],
    }
    rows = record["results"]
    for threads in args.threads:
        torch.set_num_threads(threads)
        for task in todo:
            inputs, answers = x[: task.images], labels[: task.images]
            if args.profile:
                profile(task, sides[task.network][0], inputs, answers)
                continue
            gflops = timing.matmul_gflops()
            row = measure(task, sides[task.network], inputs, answers, args.rounds)
            about_run = {"task": asdict(task), "threads": threads, "load": os.getloadavg()[0]}
            rows.append({**about_run, **with_floor(row, flops[id(task)], gflops)})
            show(rows[-1])
            write(record, args.output)  # after every measurement: a stopped run keeps what it has
    return 0 if all(check["agrees"] for row in rows for check in row["agreement"].values()) else 1


def write(record: dict[str, Any], output: Path) -> None:
    """Replaces the result file as a whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(output)
    print(f"  written: {output.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
