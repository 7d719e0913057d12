"""`ironbound attack`."""

from __future__ import annotations

from typing import Annotated

import typer

from ironbound.cli import options as given


def attack(
    run_folder: given.Run = None,
    eps: given.Eps = None,
    data: given.Data = None,
    arch: given.Arch = None,
    weights: given.Weights = None,
    factory: given.Factory = None,
    data_dir: given.DataDir = None,
    split: given.Split = "test",
    limit: given.Limit = None,
    range_: given.Range = None,
    norm: given.Norm = None,
    clip: given.Clip = None,
    attack: Annotated[str, typer.Option(help="pgd or fgsm.", rich_help_panel="Query")] = "pgd",
    attack_steps: given.AttackSteps = 40,
    restarts: given.Restarts = 1,
    targeted: given.Targeted = False,
    seed: given.Seed = 0,
    store: given.Store = None,
    shard: given.Shard = 256,
    save_adversarial: given.Save = None,
    per_class: given.PerClass = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
    threads: given.Threads = None,
    device: given.Device = "cpu",
) -> None:
    """Look for inputs within ε that change the answer; proves nothing."""
    from ironbound.cli.run import Output, Query, Source, run

    run(
        Source(arch, weights, factory, data, data_dir, split, limit, range_, run_folder),
        Query(eps, norm, clip, (), attack, attack_steps, restarts, targeted, seed),
        Output(store, shard, save_adversarial, per_class, json, quiet, threads, device),
    )
