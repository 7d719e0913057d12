"""The options that several commands share: each is declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_NETWORK, _DATA, _QUERY, _OUTPUT = "Network", "Data", "Query", "Output and resources"

Run = Annotated[
    Path | None,
    typer.Argument(
        help="Run folder of `ironbound train`: its network, data and region, where no option says otherwise."
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(help="Architecture: small, large, mlp-2x100, har, two-layer, …", rich_help_panel=_NETWORK),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights (.pt, .pth; read without executing code), a .pt2 program, an .onnx file, or a run folder.",
        rich_help_panel=_NETWORK,
    ),
]
Factory = Annotated[
    str | None,
    typer.Option(help="path/module.py:function that makes a network; the file is run.", rich_help_panel=_NETWORK),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="digits, mnist, fashion-mnist, cifar10, svhn, har, or an .npz file.", rich_help_panel=_DATA
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with the official files; else a cache, else a download.", rich_help_panel=_DATA),
]
Split = Annotated[str, typer.Option(help="test or train.", rich_help_panel=_DATA)]
Limit = Annotated[int | None, typer.Option(help="Only the first N examples.", min=1, rich_help_panel=_DATA)]
Range = Annotated[
    str | None, typer.Option("--range", metavar="A:B", help="Only examples A to B - 1.", rich_help_panel=_DATA)
]
Eps = Annotated[
    float | None,
    typer.Option(help="Radius ε in the units of the data as loaded (pixels: [0, 1]).", rich_help_panel=_QUERY),
]
Norm = Annotated[
    str | None, typer.Option(help="linf, l2 or l1 (default: linf).", rich_help_panel=_QUERY, show_default=False)
]
Clip = Annotated[
    str | None,
    typer.Option(metavar="LOW,HIGH", help="Range that inputs cannot leave, such as 0,1.", rich_help_panel=_QUERY),
]
Arithmetic = Annotated[
    str,
    typer.Option(
        help="What is proved: real, the network in real arithmetic; float32, every run of it in float32; none: margins "
        "above a guard will do (docs/arithmetic.md).",
        rich_help_panel=_QUERY,
    ),
]
AttackSteps = Annotated[int, typer.Option("--attack-steps", help="Steps of PGD.", min=1, rich_help_panel=_QUERY)]
Restarts = Annotated[int, typer.Option("--restarts", help="Runs of PGD per example.", min=1, rich_help_panel=_QUERY)]
Targeted = Annotated[bool, typer.Option("--targeted", help="PGD towards every class.", rich_help_panel=_QUERY)]
Seed = Annotated[int, typer.Option(help="Seed of what is random.", rich_help_panel=_QUERY)]
Store = Annotated[
    Path | None,
    typer.Option(
        help="File for the results as they come: the same command resumes there.",
        rich_help_panel=_OUTPUT,
    ),
]
Shard = Annotated[int, typer.Option(help="Examples decided, and written, at a time.", min=1, rich_help_panel=_OUTPUT)]
Save = Annotated[
    Path | None,
    typer.Option("--save-adversarial", help="Write the inputs that change the answer (.npz).", rich_help_panel=_OUTPUT),
]
PerClass = Annotated[bool, typer.Option("--per-class", help="Also a line for each class.", rich_help_panel=_OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and only JSON, on stdout.", rich_help_panel=_OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.", rich_help_panel=_OUTPUT)]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch chooses.", min=1, rich_help_panel=_OUTPUT)]
Device = Annotated[str, typer.Option(help="cpu, or a GPU such as cuda.", rich_help_panel=_OUTPUT)]
