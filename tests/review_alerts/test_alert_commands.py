"""`flagger alerts check`, and the files that the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flagger.rulebook import load_rulebook
from review.alerts.cli import alerts
from review.alerts.rules import load_alert_rules

DOCS = Path(__file__).parents[2] / "docs"


def shown(page: str) -> str:
    """Return the TOML that a page shows."""
    found: str = re.findall(r"```toml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)[0]
    return found


def test_the_file_in_the_documentation_of_alerts(tmp_path: Path) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text(shown("alerts.md"))
    rules = load_alert_rules(file)
    names = ["private banking", "large declines", "the rest"]
    assert [rule.name for rule in rules.rule] == names
    assert rules.rule[0].segment == list(rules.segment) == ["private-banking"]
    assert rules.silence is not None


def test_the_file_in_the_documentation_of_rules(tmp_path: Path) -> None:
    (tmp_path / "stolen.txt").write_text("tok_c_99\n")
    file = tmp_path / "rules.toml"
    file.write_text(shown("rules.md"))
    rulebook = load_rulebook(file)
    assert [one.action for one in rulebook.lists] == ["deny", "allow"]
    assert len(rulebook.lists[0].values) == 3


def test_check_sends_a_test_and_says_who_took_it(
    hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text(
        '[receiver.good]\nurl_env = "GOOD"\n[receiver.bad]\nurl_env = "BAD"\n'
        '[[rule]]\nname = "all"\nreceivers = ["good", "bad"]\nmin_amount = 50\n'
    )
    monkeypatch.setenv("GOOD", f"json://127.0.0.1:{hook.port}/")
    monkeypatch.setenv("BAD", "json://127.0.0.1:9/S3CRETWORD")
    result = CliRunner().invoke(alerts, ["check", "--file", str(file)])
    assert result.exit_code == 0
    assert "min_amount" in result.output
    assert hook.told == []
    result = CliRunner().invoke(alerts, ["check", "--file", str(file), "--send"])
    assert result.exit_code == 1
    assert "good: taken" in result.output
    assert "bad: " in result.output
    assert "S3CRETWORD" not in result.output
    assert [message["title"] for message in hook.told] == ["Fraud Flagger: test"]
