"""`ironbound selftest`: table, JSON and exit codes."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from ironbound.cli.app import app
from ironbound.selftest import running
from ironbound.selftest.running import Result

GOOD = Result("dual", "enumeration", 4, (), 0.1)
BAD = Result("crown", "enumeration", 4, ("0.5 above the optimum",), 0.1)


def run(monkeypatch: pytest.MonkeyPatch, found: list[Result], *options: str):
    monkeypatch.setattr(running, "results", lambda: iter(found))
    return CliRunner().invoke(app, ["selftest", *options])


def test_all_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, [GOOD])
    assert done.exit_code == 0
    assert "all passed" in done.stdout
    assert re.search(r"enumeration\W+dual\W+4\W+ok", done.stdout)


def test_a_failure_is_named_and_ends_in_1(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, [GOOD, BAD])
    assert done.exit_code == 1
    assert "FAILED crown, enumeration: 0.5 above the optimum" in done.stdout
    assert "do not rely" in done.stdout


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, [GOOD, BAD], "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 1 and report["passed"] is False
    assert [entry["subject"] for entry in report["checks"]] == ["dual", "crown"]
    assert report["checks"][1]["failures"] == ["0.5 above the optimum"]
