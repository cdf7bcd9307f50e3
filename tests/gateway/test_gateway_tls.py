"""TLS of every connection, and secrets that come from files."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from flagger.errors import ConfigurationError, StateStoreError
from flagger.kafka import client_config
from flagger.settings import Settings, load_settings
from flagger.triton_address import endpoint
from gateway.link import ValkeyLink

pytestmark = pytest.mark.anyio


def test_secrets_come_from_files_and_stay_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("pa55\n")
    (tmp_path / "ca.pem").touch()
    monkeypatch.setenv("FLAGGER_KAFKA_BOOTSTRAP_SERVERS", "broker:9093")
    monkeypatch.setenv("FLAGGER_KAFKA_SECURITY_PROTOCOL", "sasl_ssl")
    monkeypatch.setenv("FLAGGER_KAFKA_USERNAME", "gateway")
    monkeypatch.setenv("FLAGGER_KAFKA_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("FLAGGER_KAFKA_TLS_CA", str(tmp_path / "ca.pem"))
    settings = load_settings()
    assert "pa55" not in repr(settings)
    config = client_config(settings)
    assert config["security.protocol"] == "sasl_ssl"
    assert config["sasl.password"] == "pa55"
    assert config["ssl.ca.location"] == str(tmp_path / "ca.pem")
    monkeypatch.delenv("FLAGGER_KAFKA_PASSWORD_FILE")
    with pytest.raises(ConfigurationError, match="sasl_ssl needs"):
        load_settings()
    monkeypatch.setenv("FLAGGER_KAFKA_PASSWORD_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="names no readable file"):
        load_settings()


def test_addresses_of_triton(tmp_path: Path) -> None:
    assert endpoint("triton:8001") == {"url": "triton:8001"}
    for name in "abc":
        (tmp_path / name).touch()
    address = f"grpcs://triton:8001?ca={tmp_path}/a&cert={tmp_path}/b&key={tmp_path}/c"
    found = endpoint(address)
    assert found["ssl"] is True
    assert found["private_key"] == str(tmp_path / "c")
    (tmp_path / "c").unlink()
    with pytest.raises(ConfigurationError, match=r"key=.*/c is not there"):
        endpoint(address)
    for bad in ("http://triton:8001", "grpcs://triton:8001?cafile=/a"):
        with pytest.raises(ConfigurationError, match="FLAGGER_TRITON_URL"):
            endpoint(bad)


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[trustme.CA, Path]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = ca.issue_cert("localhost", "127.0.0.1")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in server.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    return ca, tmp_path


async def test_https_with_client_certificates(
    certificates: tuple[trustme.CA, Path], gateway: Any
) -> None:
    ca, folder = certificates
    settings = Settings(
        gateway_auth="off",
        gateway_tls_certificate=folder / "cert.pem",
        gateway_tls_key=folder / "key.pem",
        gateway_tls_client_ca=folder / "ca.pem",
        gateway_drain_ms=0,
    )
    trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    async with gateway.serving(settings) as port:
        url = f"https://127.0.0.1:{port}/healthz"
        async with httpx.AsyncClient(verify=trusting) as stranger:
            with pytest.raises(httpx.TransportError):
                await stranger.get(url)
        ca.issue_cert("client").configure_cert(trusting)
        async with httpx.AsyncClient(verify=trusting) as known:
            response = await known.get(url)
            assert response.status_code == 200
            assert "max-age" in response.headers["strict-transport-security"]


async def test_valkey_link_checks_the_certificate_and_sends_the_password(
    certificates: tuple[trustme.CA, Path],
) -> None:
    _, folder = certificates
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (b"+OK\r\n+OK\r\n", b"+PONG\r\n"):
            received.append(await reader.read(1_000))
            writer.write(reply)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    url = f"valkeys://user:secret@127.0.0.1:{port}/2?ssl_ca_certs={folder / 'ca.pem'}"
    link = ValkeyLink(url)
    assert await link.call("answer", [("PING",)], 5_000) == [b"PONG"]
    assert b"AUTH" in received[0]
    assert b"secret" in received[0]
    await link.close()
    with pytest.raises(StateStoreError, match="certificate verify failed"):
        await ValkeyLink(url.partition("?")[0]).call("answer", [("PING",)], 5_000)
    server.close()
