"""The file of receivers and rules: what it lets through, and what it says when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagger.alert import Alert
from flagger.errors import ConfigurationError
from review.alerts.receivers import apprise_transport, mask_secrets
from review.alerts.rules import AlertRule, AlertRules, Secret, load_alert_rules
from review.alerts.segments import read_segments

GOOD = """
[receiver.duty]
url_env = "DUTY"
[[rule]]
name = "all"
receivers = ["duty"]
"""


def alert(**fields: Any) -> Alert:
    given: dict[str, Any] = {
        "transaction_id": "t1",
        "customer_id": "c1",
        "event_time": 1_767_225_600_000,
        "amount": 100.0,
        "decision": "review",
        "decision_source": "model",
        "score": 0.5,
        "channel": "ecom",
        "country": "FR",
        "terminal_id": "m1",
    }
    return Alert(**given | fields)


def rules(**fields: Any) -> AlertRules:
    return AlertRules({"duty": Secret("DUTY")}, [AlertRule("all", ["duty"], **fields)])


@pytest.mark.parametrize(
    ("conditions", "passing", "failing"),
    [
        ({"decision": ["decline"]}, {"decision": "decline"}, {}),
        ({"decision_source": ["list"]}, {"decision_source": "list"}, {}),
        ({"min_amount": 100}, {}, {"amount": 99.99}),
        ({"min_score": 0.5}, {}, {"score": 0.49}),
        ({"min_score": 0.5}, {}, {"score": None}),
        ({"channel": ["ecom", "moto"]}, {}, {"channel": "pos"}),
        ({"country": ["FR"]}, {}, {"country": None}),
        ({"currency": ["EUR"]}, {"currency": "EUR"}, {}),
        ({"merchant_category": ["7995"]}, {"merchant_category": "7995"}, {}),
        ({"segment": ["vip"]}, {"customer_id": "c7"}, {"customer_id": "c70"}),
        ({"terminal_id": ["m1"]}, {}, {"terminal_id": "m2"}),
        ({"reason_code": ["rule"]}, {"reason_codes": ["score", "rule"]}, {}),
        ({"min_severity": "critical"}, {"decision": "decline"}, {}),
        ({"min_severity": "critical"}, {"score": 0.9}, {"score": 0.89}),
    ],
)
def test_each_condition(
    conditions: dict[str, Any], passing: dict[str, Any], failing: dict[str, Any]
) -> None:
    made = rules(**conditions)
    (rule,) = made.rule
    for fields, expected in ((passing, True), (failing, False)):
        told = alert(**fields)
        assert rule.matches(told, made.severity_of(told), {"vip": frozenset({"c7"})}) is expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("receivers = ", "receiver = "), ["rule 1 (all)", "receiver"]),
        (('["duty"]', '["nobody"]'), ["rule all", "nobody", "there are duty"]),
        (('["duty"]', "[]"), ["rule all", "nobody"]),
        (('name = "all"', 'name = "all"\nmin_amount = "1"'), ["rule 1 (all)", "min_amount"]),
        (('name = "all"', 'name = "all"\nmin_score = 2'), ["rule 1 (all)", "min_score"]),
        (('name = "all"', 'name = "all"\nburst = 0'), ["rule 1 (all)", "burst"]),
        (('name = "all"', 'name = "all"\ndecision = ["approve"]'), ["decision", "approve"]),
        (("[[rule]]", '[[rule]]\nname = "all"\nreceivers = ["duty"]\n[[rule]]'), ["two rules"]),
        (('name = "all"', 'name = "all"\nsegment = ["vip"]'), ["rule all", "vip", "are none"]),
        (("url_env", "url"), ["receiver", "url"]),
        (("[receiver.duty]", "[receiver.duty"), ["line 2"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: tuple[str, str], words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text(GOOD)
    load_alert_rules(file)
    file.write_text(GOOD.replace(*change))
    with pytest.raises(ConfigurationError) as caught:
        load_alert_rules(file)
    assert str(file) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_segments_are_lists_of_customers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, customers = tmp_path / "alerts.toml", tmp_path / "vip.txt"
    file.write_text(GOOD + f'segment = ["vip"]\n[segment.vip]\ncustomers_file = "{customers}"\n')
    made = load_alert_rules(file)
    with pytest.raises(ConfigurationError, match=r"segment vip: .*one customer id a line"):
        read_segments(made)
    customers.write_text("\n \n")
    with pytest.raises(ConfigurationError, match="names no customer"):
        read_segments(made)
    customers.write_text("c7\r\n\nZoë 9 \nc7\n", encoding="utf-8")
    assert read_segments(made) == {"vip": {"c7", "Zoë 9"}}
    monkeypatch.setattr("review.alerts.segments.MAX_SEGMENT_CUSTOMERS", 1)
    with pytest.raises(ConfigurationError, match="more than 1 customers"):
        read_segments(made)


def test_secrets_come_from_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "url"
    file.write_text("json://localhost/S3CRET\n")
    rules_file = tmp_path / "alerts.toml"
    rules_file.write_text(GOOD.replace('url_env = "DUTY"', f'url_file = "{file}"'))
    secret = load_alert_rules(rules_file).receiver["duty"]
    assert secret.read("receiver duty") == "json://localhost/S3CRET"
    monkeypatch.setenv("DUTY", "json://localhost/OTHER")
    assert Secret(url_env="DUTY").read("receiver duty") == "json://localhost/OTHER"
    file.write_text("one\ntwo\n")
    for wrong in (Secret(), Secret("DUTY", str(file)), Secret("NOT_SET"), secret):
        with pytest.raises(ConfigurationError, match="receiver duty"):
            wrong.read("receiver duty")


def test_a_url_that_nobody_knows_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="none that Apprise") as caught:
        apprise_transport("duty", "nonsense://S3CRET")
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        (
            "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
            ["T1JJ3T3L2", "TIiajkdnlazkcOXrIdevi7FQ"],
        ),
        ("mailto://me:p%40ssword@example.com", ["p@ssword", "p%40ssword"]),
        ("jsons://hooks.example.com/a/L0NGT0KEN?+X-Key=ABCDEF", ["L0NGT0KEN", "ABCDEF"]),
    ],
)
def test_secrets_are_masked(url: str, secrets: list[str]) -> None:
    told = mask_secrets(f"failed: {url}; " + " ".join(secrets), url)
    for secret in secrets:
        assert secret not in told
