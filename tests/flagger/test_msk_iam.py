"""Tokens for Amazon MSK, made by AWS's own signer from credentials that are not real."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from flagger.errors import ConfigurationError
from flagger.kafka import client_config
from flagger.msk_iam import token_callback
from flagger.settings import Settings

SECRET = "planted/secret/of/nobody"


@pytest.fixture
def no_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which AWS finds nothing, whatever machine this is."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID",
                 "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return monkeypatch


def test_a_token_is_a_signed_connect_of_the_region(no_aws: pytest.MonkeyPatch) -> None:
    no_aws.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    token, expiry_s = token_callback("eu-central-1")("")
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert url.hostname == "kafka.eu-central-1.amazonaws.com"
    assert query["Action"] == "kafka-cluster:Connect"
    assert query["X-Amz-Credential"].endswith("/eu-central-1/kafka-cluster/aws4_request")
    assert query["X-Amz-Expires"] == "900"
    assert 800 < expiry_s - time.time() <= 900
    assert SECRET not in url.geturl()


def test_the_clients_of_msk_take_tokens(no_aws: pytest.MonkeyPatch) -> None:
    no_aws.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    no_aws.setenv("AWS_REGION", "eu-west-1")
    config = client_config(
        Settings(
            kafka_bootstrap_servers="boot-1.kafka.eu-west-1.amazonaws.com:9098",
            kafka_security_protocol="sasl_ssl",
            kafka_sasl_mechanism="AWS_MSK_IAM",
        )
    )
    assert config["security.protocol"] == "sasl_ssl"
    assert config["sasl.mechanism"] == "OAUTHBEARER"
    assert "sasl.password" not in config
    assert config["oauth_cb"]("")[0]


def test_what_is_missing_is_said_before_a_client_is_made(no_aws: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="FLAGGER_KAFKA_AWS_REGION"):
        token_callback(None)
    with pytest.raises(ConfigurationError, match="credentials were not found"):
        token_callback("eu-central-1")
