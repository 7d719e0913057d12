"""`ironbound certify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ironbound.cli import options as given


def certify(
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
    methods: Annotated[
        str,
        typer.Option(
            help="Proof methods in order, by commas: interval, dual, dual+interval, crown, crown-ibp, alpha, lp; "
            "then split or milp, which search until the example is decided.",
            rich_help_panel="Query",
        ),
    ] = "interval,dual",
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds that split or milp may take for an example.", rich_help_panel="Query"),
    ] = None,
    arithmetic: given.Arithmetic = "real",
    attack: Annotated[
        str | None,
        typer.Option(
            help="pgd, fgsm or none (default: pgd, with --detect none).", rich_help_panel="Query", show_default=False
        ),
    ] = None,
    attack_steps: given.AttackSteps = 40,
    restarts: given.Restarts = 1,
    targeted: given.Targeted = False,
    seed: given.Seed = 0,
    detect: Annotated[
        bool,
        typer.Option(
            "--detect",
            help="No labels: which inputs cannot be adversarial?",
            rich_help_panel="Query",
        ),
    ] = False,
    store: given.Store = None,
    shard: given.Shard = 256,
    certificates: Annotated[
        Path | None,
        typer.Option(
            help="Folder for certificates of what is certified: `ironbound check` proves them again. Resumes, too.",
            rich_help_panel="Output and resources",
        ),
    ] = None,
    save_adversarial: given.Save = None,
    per_class: given.PerClass = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
    threads: given.Threads = None,
    device: given.Device = "cpu",
) -> None:
    """Prove for each example that nothing within ε changes the answer; attack the rest."""
    from ironbound.cli.run import Output, Query, Source, run

    names = tuple(name.strip() for name in methods.split(",") if name.strip())
    attack = attack or ("none" if detect else "pgd")
    run(
        Source(arch, weights, factory, data, data_dir, split, limit, range_, run_folder),
        Query(eps, norm, clip, names, attack, attack_steps, restarts, targeted, seed, detect, budget, arithmetic),
        Output(store, shard, save_adversarial, per_class, json, quiet, threads, device, certificates),
    )
