"""Keys, tokens, scopes, limits, headers, TLS: who may ask, and what nobody gets to see."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flagger.cli import cli
from flagger.errors import ConfigurationError
from flagger.settings import Settings
from gateway.audit import MAX_UNKNOWN_PER_S, AuditLog
from gateway.guard import Guard
from gateway.keys import KeyFile, new_key
from tests.gateway.conftest import bearer

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]


async def test_each_key_may_do_what_its_scopes_say(
    guarded: Any, keys: dict[str, str], body: Body
) -> None:
    label = {"transaction_id": "t-1", "is_fraud": True}
    async with guarded() as gateway:

        async def status(method: str, path: str, key: str, sent: Any = None) -> int:
            headers = bearer(key) if key else {}
            response = await gateway.client.request(method, path, json=sent, headers=headers)
            if response.status_code >= 400:
                assert response.headers["content-type"] == "application/problem+json"
            return int(response.status_code)

        wrong = keys["payments"][:-1] + ("0" if keys["payments"][-1] != "0" else "1")
        for key, expected in (
            ("", 401),
            ("ffk_", 401),
            ("nonsense", 401),
            (wrong, 401),
            (keys["old"], 401),
            (keys["analysts"], 403),
            (keys["payments"], 200),
            (keys["operator"], 200),
        ):
            assert await status("POST", "/v1/score", key, body()) == expected
            batch = {"transactions": [body()]}
            assert await status("POST", "/v1/score/batch", key, batch) == expected
            assert await status("GET", "/v1/models", key) == expected
        assert await status("GET", "/v1/decisions/t-1", keys["payments"]) == 200
        assert await status("GET", "/v1/decisions/t-1", keys["analysts"]) == 403
        assert await status("POST", "/v1/feedback", keys["payments"], label) == 403
        assert await status("POST", "/v1/feedback", keys["analysts"], label) == 202
        assert await status("POST", "/v1/models/refresh", keys["payments"]) == 403
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert await status("GET", path, "") == 200
        unknown = await gateway.client.post("/v1/score", json=body())
        assert unknown.headers["www-authenticate"] == "Bearer"
        other = await gateway.client.get("/v1/models", headers={"X-API-Key": keys["payments"]})
        assert other.status_code == 200
        assert len(gateway.log.messages) == 1


async def test_revoked_and_new_keys_take_effect_without_restart(
    guarded: Any, keys: dict[str, str], tmp_path: Path
) -> None:
    runner, option = CliRunner(), ["--file", str(tmp_path / "keys.json")]
    async with guarded() as gateway:
        made = runner.invoke(cli, ["keys", "create", "rotated", *option]).output.strip()
        key_id = keys["payments"].split("_")[1]
        assert runner.invoke(cli, ["keys", "revoke", key_id, *option]).exit_code == 0
        end_s = time.monotonic() + 5
        statuses: list[int] = []
        while statuses != [401, 200] and time.monotonic() < end_s:
            await asyncio.sleep(0.1)
            statuses = [
                (await gateway.client.get("/v1/models", headers=bearer(key))).status_code
                for key in (keys["payments"], made)
            ]
        assert statuses == [401, 200]
    listed = runner.invoke(cli, ["keys", "list", *option]).output
    assert "revoked" in listed
    assert made.split("_")[2] not in listed
    content = (tmp_path / "keys.json").read_text()
    assert all(key.split("_")[2] not in content for key in (*keys.values(), made))
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    audit = (tmp_path / "keys.json.audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in audit] == ["key.create", "key.revoke"]
    assert isinstance(
        runner.invoke(cli, ["keys", "revoke", "nobody", *option]).exception, ConfigurationError
    )


async def test_rate_limit_holds_over_replicas(
    guarded: Any, keys: dict[str, str], body: Body
) -> None:
    headers = bearer(keys["limited"])
    async with guarded() as one, guarded() as other:
        responses = await asyncio.gather(
            *(
                gateway.client.post(
                    "/v1/score", json=body(transaction_id=f"t-{i}"), headers=headers
                )
                for i, gateway in enumerate((one, other) * 5)
            )
        )
        refused = [r for r in responses if r.status_code == 429]
        assert 3 <= len(refused) <= 6
        assert refused[0].json()["type"].endswith(":rate_limited")
        assert int(refused[0].headers["retry-after"]) >= 1
        await asyncio.sleep(1.2)
        again = await one.client.get("/v1/models", headers=headers)
        assert again.status_code == 200


@pytest.mark.parametrize("sent", [{"transactions": []}, {}], ids=["empty", "bad"])
async def test_a_batch_of_nothing_counts_too(guarded: Any, keys: dict[str, str], sent: Any) -> None:
    headers = bearer(keys["limited"])
    async with guarded() as gateway:
        statuses = [
            (await gateway.client.post("/v1/score/batch", json=sent, headers=headers)).status_code
            for _ in range(20)
        ]
    assert 429 in statuses


async def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    files = [KeyFile.open(tmp_path / "keys.json") for _ in range(4)]
    made = [new_key(f"n{i}", ("score",), 1) for i in range(4)]
    await asyncio.gather(
        *(asyncio.to_thread(f.put, key) for f, (key, _) in zip(files, made, strict=True))
    )
    kept = KeyFile.open(tmp_path / "keys.json")
    assert all(kept.find(text) == key for key, text in made)


async def test_without_keys_it_does_not_start_unless_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gateway: Any
) -> None:
    settings = Settings(gateway_keys_file=tmp_path / "none.json")
    state, clock = gateway.state, gateway.app.state.door.clock
    with pytest.raises(ConfigurationError, match="flagger keys create"):
        Guard(settings, state, clock, lambda _: None)
    Guard(settings.model_copy(update={"gateway_auth": "off"}), state, clock, lambda _: None)
    assert "EVERYBODY" in caplog.text


async def test_admin_actions_are_audited_whatever_comes_of_them(
    guarded: Any, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    async with guarded(gateway_audit_log=path) as gateway:
        live = gateway.app.state.door.backends.live
        at_switch: list[str] = []

        async def refresh() -> bool:
            at_switch.append(path.read_text())
            return False

        monkeypatch.setattr(live, "refresh", refresh)
        for name in ("payments", "old", "nobody", "operator"):
            await gateway.client.post(
                "/v1/models/refresh", headers=bearer(keys.get(name, "ffk_00000000_made-up"))
            )
    key_id = {name: key.split("_")[1] for name, key in keys.items()}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["action"] for line in lines} == {"models.refresh"}
    assert [(line["who"], line["outcome"], line.get("why")) for line in lines] == [
        (key_id["payments"], "refused", "forbidden"),
        (key_id["old"], "refused", "unauthenticated"),
        ("nobody", "refused", "unauthenticated"),
        (key_id["operator"], "begun", None),
        (key_id["operator"], "done", None),
    ]
    assert at_switch[0].count("\n") == 4


def test_strangers_do_not_fill_the_audit_log(tmp_path: Path) -> None:
    now_s = 0.0
    audit = AuditLog(tmp_path / "audit.jsonl", lambda: now_s)
    for _ in range(1_000):
        audit.write_refused("models.refresh", "nobody")
    audit.write_refused("models.refresh", "known")
    now_s = 1.0
    audit.write_refused("models.refresh", "nobody")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len(lines) == MAX_UNKNOWN_PER_S + 2
    assert lines[-2]["who"] == "known"
    assert lines[-1]["left_out"] == 1_000 - MAX_UNKNOWN_PER_S


async def test_answers_have_security_headers(gateway: Any, body: Body) -> None:
    for response in (await gateway.post(body()), await gateway.client.get("/nowhere")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "server" not in response.headers


async def test_slow_body_is_cut_off(start_gateway: Any, body: Body) -> None:
    async def trickle() -> Any:
        for _ in range(50):
            yield b" "
            await asyncio.sleep(0.05)

    async with start_gateway(budget_ms=200) as gateway:
        start_s = time.monotonic()
        headers = {"content-type": "application/json"}
        response = await gateway.client.post("/v1/score", content=trickle(), headers=headers)
        assert response.status_code == 408
        assert time.monotonic() - start_s < 2
