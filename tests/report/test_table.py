"""The table: every number of the summary, and the words that belong to it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console

from ironbound.certification import Certification
from ironbound.report.table import describe, print_table

SETTINGS = {
    "eps": 0.1,
    "unit": "pixels in [0, 1]",
    "norm": "linf",
    "clip": None,
    "methods": ["interval", "dual"],
    "attack": {"name": "pgd", "steps": 40, "restarts": 2, "targeted": True, "seed": 5},
    "detection": False,
    "network_sha256": "ab" * 32,
    "data_sha256": "cd" * 32,
    "versions": {"ironbound": "0.1.0", "torch": "2.9.1", "python": "3.12.1"},
}


def make_certification(**settings: object) -> Certification:
    status = ["misclassified"] * 2 + ["falsified"] * 3 + ["certified"] * 14 + ["unknown"]
    labels = torch.arange(20) % 2
    return Certification(
        status=np.array(status),
        margins=torch.ones(20, 2, dtype=torch.float64),
        method=np.array([""] * 2 + ["pgd"] * 3 + ["interval"] * 4 + ["dual"] * 10 + [""]),
        arithmetic=np.array(
            [""] * 5 + ["real arithmetic"] * 13 + ["as executed in float32"] + ["float64, not outward rounded"]
        ),
        adversarial={2: torch.zeros(1), 3: torch.zeros(1), 4: torch.zeros(1)},
        predictions=labels,
        labels=labels,
        settings={**SETTINGS, **settings},
        seconds={"prediction": 0.1, "bounds": 7.25, "attack": 1.5},
    )


def printed(result: Certification, per_class: bool = False) -> str:
    file = io.StringIO()
    print_table(result, per_class, Console(file=file, width=60))
    return file.getvalue()


def row(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.strip().startswith(start))
    return [cell.strip() for cell in line.split("│")]


def test_rates_stand_with_their_intervals() -> None:
    text = printed(make_certification())
    assert row(text, "clean error") == ["clean error", "2", "10.00 %", "2.79 to 30.10 %"]
    assert row(text, "attack error")[1:3] == ["5", "25.00 %"]
    assert row(text, "certified error bound")[1:3] == ["6", "30.00 %"]
    assert "misclassified 2, falsified 3, certified 14 (by interval 4, dual 10), unknown 1 of 20" in text
    assert "bounds 7.25" in text
    assert "attack 1.50" in text


def test_the_head_names_the_query() -> None:
    lines = dict(describe(make_certification()))
    assert lines["region"] == "ε = 0.1 (pixels in [0, 1]), norm linf, not clipped"
    assert lines["methods"] == "interval, dual"
    assert lines["attack"] == "FGSM, then PGD (targeted, 40 steps, runs per example: 2, seed 5)"
    assert lines["proofs for"] == "real arithmetic: 13; as executed in float32: 1"
    assert lines["above a guard only"].startswith("float64, not outward rounded: 1 (unknown;")
    assert lines["versions"] == "ironbound 0.1.0, torch 2.9.1, python 3.12.1"
    assert "abababababab" in lines["network"]
    assert lines["data"] == "20 examples (sha256 cdcdcdcdcdcd…)"
    other = dict(describe(make_certification(eps=[0.1, 0.25], clip=[-1.0, 1.0], attack=None, methods=[])))
    assert other["region"] == "ε = 0.1 to 0.25 (pixels in [0, 1]), norm linf, clipped to [-1, 1]"
    assert (other["methods"], other["attack"]) == ("none", "none")


def test_notes_on_the_data_are_shown() -> None:
    data = {"name": "cifar10", "split": "test", "range": [5, 25], "notes": ["34 images are missing"]}
    text = printed(make_certification(data=data))
    assert "cifar10 test, examples 5 to 24 (20)" in text
    assert "! 34 images are missing" in text


def test_each_class_has_its_line() -> None:
    text = printed(make_certification(), per_class=True)
    assert row(text, "0") == ["0", "10", "10.00 %", "30.00 %", "30.00 %"]
    assert row(text, "1") == ["1", "10", "10.00 %", "20.00 %", "30.00 %"]


def test_without_an_attack_no_attack_error_is_claimed() -> None:
    text = printed(make_certification(attack=None), per_class=True)
    assert row(text, "attack error")[2] == "not attacked"
    assert row(text, "0")[3] == "–"


def test_detection_flags_what_is_not_certified() -> None:
    result = make_certification(detection=True)
    result = replace(result, status=np.where(result.status == "misclassified", "unknown", result.status))
    text = printed(result)
    assert row(text, "certified: cannot be adversarial")[1] == "14"
    assert row(text, "flagged")[1] == "6"
    assert "clean error" not in text
