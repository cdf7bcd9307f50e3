"""Keys, tokens, scopes, limits, headers, TLS: who may ask, and what nobody gets to see."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec

from flagger.cli import cli
from flagger.errors import ConfigurationError
from flagger.settings import Settings
from gateway.guard import Guard
from gateway.keys import KeyFile, new_key

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]
NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Return name -> key of a file with one key of each kind."""
    file = KeyFile.open(tmp_path / "keys.json")
    made = {}
    for name, scopes, options in (
        ("payments", ("score",), {}),
        ("analysts", ("feedback",), {}),
        ("operator", ("admin",), {}),
        ("old", ("score",), {"expires_ms": NOW_MS - 1}),
        ("limited", ("score",), {"rate_per_s": 3.0}),
    ):
        key, made[name] = new_key(name, scopes, NOW_MS, **options)  # type: ignore[arg-type]
        file.put(key)
    return made


@pytest.fixture
def guarded(tmp_path: Path, start_gateway: Any, keys: dict[str, str]) -> Any:
    return lambda **more: start_gateway(
        gateway_auth="required", gateway_keys_file=tmp_path / "keys.json", **more
    )


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


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
    async with guarded() as one, guarded() as other:
        responses = []
        for i in range(10):
            gateway = (one, other)[i % 2]
            sent = body(transaction_id=f"t-{i}")
            headers = bearer(keys["limited"])
            responses.append(await gateway.client.post("/v1/score", json=sent, headers=headers))
        refused = [r for r in responses if r.status_code == 429]
        assert 5 <= len(refused) <= 7
        assert refused[0].json()["type"].endswith(":rate_limited")
        assert int(refused[0].headers["retry-after"]) >= 1
        await asyncio.sleep(1.2)
        again = await one.client.get("/v1/models", headers=bearer(keys["limited"]))
        assert again.status_code == 200


async def test_tokens_of_an_identity_provider(
    start_gateway: Any, tmp_path: Path, body: Body
) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [public | {"kid": "k1", "alg": "ES256"}]}))

    def token(key: Any = private, algorithm: str = "ES256", **changes: Any) -> str:
        claims = {
            "iss": "https://id.example",
            "aud": "fraud-flagger",
            "sub": "svc",
            "exp": time.time() + 60,
            "scope": "openid score",
        }
        return jwt.encode(claims | changes, key, algorithm, headers={"kid": "k1"})

    stranger = ec.generate_private_key(ec.SECP256R1())
    async with start_gateway(
        gateway_auth="required",
        gateway_keys_file=tmp_path / "none.json",
        gateway_jwt_jwks=str(jwks),
        gateway_jwt_issuer="https://id.example",
        gateway_jwt_audience="fraud-flagger",
    ) as gateway:
        for text, expected in (
            (token(), 200),
            (token(scope="feedback"), 403),
            (token(exp=time.time() - 120), 401),
            (token(aud="other"), 401),
            (token(iss="https://other"), 401),
            (token(key=stranger), 401),
            (token(key="x" * 32, algorithm="HS256"), 401),
            (token(key=None, algorithm="none"), 401),
            ("a.b.c", 401),
        ):
            response = await gateway.client.post("/v1/score", json=body(), headers=bearer(text))
            assert response.status_code == expected, text


async def test_keys_of_an_identity_provider_change(
    guarded: Any, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token under a new key holds within seconds; a broken answer stops nobody from following."""
    monkeypatch.setattr("gateway.tokens._UNKNOWN_REFRESH_S", 0.2)
    monkeypatch.setattr("gateway.guard.FOLLOW_INTERVAL_S", 0.1)
    jwks = tmp_path / "jwks.json"

    def pair(name: str) -> tuple[Any, dict[str, Any]]:
        private = ec.generate_private_key(ec.SECP256R1())
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
        return private, public | {"kid": name, "alg": "ES256"}

    def token(private: Any, name: str) -> str:
        claims = {"iss": "i", "aud": "a", "sub": "svc", "exp": time.time() + 60, "scope": "score"}
        return jwt.encode(claims, private, "ES256", headers={"kid": name})

    (old, old_public), (new, new_public) = pair("k1"), pair("k2")
    jwks.write_text(json.dumps({"keys": [old_public]}))
    provider = {
        "gateway_jwt_jwks": str(jwks),
        "gateway_jwt_issuer": "i",
        "gateway_jwt_audience": "a",
    }
    async with guarded(**provider) as gateway:

        async def status(credential: str) -> int:
            response = await gateway.client.get("/v1/models", headers=bearer(credential))
            return int(response.status_code)

        async def becomes(credential: str, expected: int) -> bool:
            end_s = time.monotonic() + 5
            while await status(credential) != expected:
                if time.monotonic() > end_s:
                    return False
                await asyncio.sleep(0.05)
            return True

        assert await status(token(old, "k1")) == 200
        for broken in ("[]", '{"keys": null}', "{"):
            jwks.write_text(broken)
            assert await status(token(new, "k2")) == 401  # asks for the keys again
            await asyncio.sleep(0.4)
        assert await status(token(old, "k1")) == 200
        jwks.write_text(json.dumps({"keys": [new_public]}))
        assert await becomes(token(new, "k2"), 200)
        assert await becomes(token(old, "k1"), 401)
        key_id = keys["payments"].split("_")[1]
        option = ["--file", str(tmp_path / "keys.json")]
        assert CliRunner().invoke(cli, ["keys", "revoke", key_id, *option]).exit_code == 0
        assert await becomes(keys["payments"], 401)


async def test_what_is_no_token_is_no_internal_error(guarded: Any, tmp_path: Path) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(public))
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk | {"kid": "k1"}]}))
    provider = {"gateway_jwt_issuer": "i", "gateway_jwt_audience": "a"}
    deep = base64.urlsafe_b64encode(b"[" * 20_000).decode().rstrip("=")
    kid = base64.urlsafe_b64encode(b'{"alg":"ES256","kid":["k"]}').decode().rstrip("=")
    long = base64.urlsafe_b64encode(b'{"alg":%b}' % (b"9" * 9_000)).decode().rstrip("=")
    async with guarded(gateway_jwt_jwks=str(tmp_path / "jwks.json"), **provider) as gateway:
        for text in (f"{deep}.e30.x", f"{kid}.e30.x", f"{long}.e30.x", "..", "\xe9.e30.x", "a b"):
            headers = {"Authorization": b"Bearer " + text.encode("latin-1")}
            response = await gateway.client.get("/v1/models", headers=headers)
            assert response.status_code == 401, text[:50]


async def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    files = [KeyFile.open(tmp_path / "keys.json") for _ in range(4)]
    made = [new_key(f"n{i}", ("score",), NOW_MS) for i in range(4)]
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


async def test_admin_actions_are_audited(
    guarded: Any, keys: dict[str, str], tmp_path: Path
) -> None:
    async with guarded(gateway_audit_log=tmp_path / "audit.jsonl") as gateway:
        headers = bearer(keys["operator"])
        response = await gateway.client.post("/v1/models/refresh", headers=headers)
        assert response.json()["switched"] is False
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    action = json.loads(line)
    assert action["action"] == "models.refresh"
    assert action["who"] == keys["operator"].split("_")[1]


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
