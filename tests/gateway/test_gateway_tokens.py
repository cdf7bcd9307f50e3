"""Tokens of an identity provider: which hold, how its keys change, how much a subject may ask."""

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
from gateway.tokens import MAX_SUBJECT_BYTES
from tests.gateway.conftest import bearer

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]
PROVIDER = {"gateway_jwt_issuer": "i", "gateway_jwt_audience": "a"}


def key_pair() -> tuple[Any, dict[str, Any]]:
    """Return a private key, and its public one as a JWK without a name."""
    private = ec.generate_private_key(ec.SECP256R1())
    return private, json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))


def token(private: Any, key_id: str, subject: str = "svc") -> str:
    """Return a token of PROVIDER that may score."""
    claims = {"iss": "i", "aud": "a", "sub": subject, "exp": time.time() + 60, "scope": "score"}
    return jwt.encode(claims, private, "ES256", headers={"kid": key_id})


async def test_the_rate_limit_of_a_subject_holds_over_replicas(
    guarded: Any, keys: dict[str, str], tmp_path: Path, body: Body
) -> None:
    private, public = key_pair()
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public | {"kid": "k1"}]}))
    provider = PROVIDER | {
        "gateway_jwt_jwks": str(tmp_path / "jwks.json"),
        "gateway_jwt_rate_per_s": 0.05,  # two at once: none is freed within this test
    }

    def headers(subject: str) -> dict[str, str]:
        return bearer(token(private, "k1", subject))

    async with guarded(**provider) as one, guarded(**provider) as other:
        # A subject that is called like a key's id has a count of its own.
        limited_key = keys["limited"].split("_")[1]
        responses = [
            await (one, other)[i % 2].client.post(
                "/v1/score", json=body(transaction_id=f"t-{i}"), headers=headers(limited_key)
            )
            for i in range(4)
        ]
        refused = [r for r in responses if r.status_code == 429]
        assert len(refused) == 2
        assert refused[0].json()["type"].endswith(":rate_limited")
        assert int(refused[0].headers["retry-after"]) >= 1
        (count,) = await one.state._call("list", [("KEYS", "ff:q:*")], 1_000)
        assert len(count) == 1
        assert limited_key.encode() not in count[0]  # the store holds no names
        for subject in ("\ud800", "", "x" * (MAX_SUBJECT_BYTES + 1)):
            response = await one.client.get("/v1/models", headers=headers(subject))
            assert response.status_code == 401
        for allowed in (
            headers("x" * MAX_SUBJECT_BYTES),
            headers("another"),
            bearer(keys["limited"]),
            bearer(keys["payments"]),
        ):
            assert (await one.client.get("/v1/models", headers=allowed)).status_code == 200


async def test_tokens_of_an_identity_provider(
    start_gateway: Any, tmp_path: Path, body: Body
) -> None:
    private, public = key_pair()
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [public | {"kid": "k1", "alg": "ES256"}]}))

    def changed(key: Any = private, algorithm: str = "ES256", **changes: Any) -> str:
        claims = {
            "iss": "https://id.example",
            "aud": "fraud-flagger",
            "sub": "svc",
            "exp": time.time() + 60,
            "scope": "openid score",
        }
        return jwt.encode(claims | changes, key, algorithm, headers={"kid": "k1"})

    stranger, _ = key_pair()
    async with start_gateway(
        gateway_auth="required",
        gateway_keys_file=tmp_path / "none.json",
        gateway_jwt_jwks=str(jwks),
        gateway_jwt_issuer="https://id.example",
        gateway_jwt_audience="fraud-flagger",
    ) as gateway:
        for text, expected in (
            (changed(), 200),
            (changed(scope="feedback"), 403),
            (changed(scope=["or score this"]), 403),
            (changed(exp=time.time() - 120), 401),
            (changed(aud="other"), 401),
            (changed(iss="https://other"), 401),
            (changed(key=stranger), 401),
            (changed(key="x" * 32, algorithm="HS256"), 401),
            (changed(key=None, algorithm="none"), 401),
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

    (old, old_public), (new, new_public) = key_pair(), key_pair()
    jwks.write_text(json.dumps({"keys": [old_public | {"kid": "k1", "alg": "ES256"}]}))
    async with guarded(gateway_jwt_jwks=str(jwks), **PROVIDER) as gateway:

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
        jwks.write_text(json.dumps({"keys": [new_public | {"kid": "k2", "alg": "ES256"}]}))
        assert await becomes(token(new, "k2"), 200)
        assert await becomes(token(old, "k1"), 401)
        key_id = keys["payments"].split("_")[1]
        option = ["--file", str(tmp_path / "keys.json")]
        assert CliRunner().invoke(cli, ["keys", "revoke", key_id, *option]).exit_code == 0
        assert await becomes(keys["payments"], 401)


async def test_what_is_no_token_is_no_internal_error(guarded: Any, tmp_path: Path) -> None:
    _, public = key_pair()
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public | {"kid": "k1"}]}))
    deep = base64.urlsafe_b64encode(b"[" * 20_000).decode().rstrip("=")
    kid = base64.urlsafe_b64encode(b'{"alg":"ES256","kid":["k"]}').decode().rstrip("=")
    long = base64.urlsafe_b64encode(b'{"alg":%b}' % (b"9" * 9_000)).decode().rstrip("=")
    async with guarded(gateway_jwt_jwks=str(tmp_path / "jwks.json"), **PROVIDER) as gateway:
        for text in (f"{deep}.e30.x", f"{kid}.e30.x", f"{long}.e30.x", "..", "\xe9.e30.x", "a b"):
            headers = {"Authorization": b"Bearer " + text.encode("latin-1")}
            response = await gateway.client.get("/v1/models", headers=headers)
            assert response.status_code == 401, text[:50]
