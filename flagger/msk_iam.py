"""Tokens with which a Kafka client proves its AWS identity to Amazon MSK.

MSK's IAM listener (port 9098) speaks SASL/OAUTHBEARER; the token is a pre-signed request for
`kafka-cluster:Connect`, made here from the credentials that the AWS environment offers: variables,
profile, web identity (EKS), instance or container role. Nothing is sent to AWS to make it, except
where the credentials themselves come from a service. A token lasts 15 minutes; the client library
asks for a new one before that, on a thread of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from flagger.errors import ConfigurationError

__all__ = ["TokenCallback", "token_callback"]

TokenCallback = Callable[[str], tuple[str, float]]
"""Called with the client's `sasl.oauthbearer.config`; returns token and expiry (epoch seconds)."""

logger = logging.getLogger(__name__)


def _region(region: str | None) -> str:
    found = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not found:
        raise ConfigurationError(
            "FLAGGER_KAFKA_SASL_MECHANISM=AWS_MSK_IAM needs the cluster's region: set "
            "FLAGGER_KAFKA_AWS_REGION or AWS_REGION."
        )
    return found


def token_callback(region: str | None) -> TokenCallback:
    """Return what makes tokens for MSK clusters of a region; makes one to see that it can.

    Args:
        region: The region; None: that of AWS_REGION or AWS_DEFAULT_REGION.

    Raises:
        ConfigurationError: No region, no credentials, or the group `aws` is not installed.
    """
    try:
        from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise ConfigurationError(
            "FLAGGER_KAFKA_SASL_MECHANISM=AWS_MSK_IAM needs the package "
            "aws-msk-iam-sasl-signer-python: install the dependency group `aws`."
        ) from error
    where = _region(region)

    def make(_config: str) -> tuple[str, float]:
        try:
            token, expiry_ms = MSKAuthTokenProvider.generate_auth_token(where)
        # AttributeError: the signer's own answer to an environment without credentials.
        except (BotoCoreError, ClientError, AttributeError, ValueError) as error:
            is_aws = isinstance(error, (BotoCoreError, ClientError))
            why = str(error) if is_aws else "there are none"
            message = (
                f"No token for MSK in {where}: AWS credentials were not found or not accepted "
                f"({why}). Give this process a role (EKS pod identity, instance profile) or AWS_* "
                f"variables."
            )
            logger.error("%s", message)  # the client library keeps only its own words
            raise ConfigurationError(message) from error
        return token, expiry_ms / 1000

    make("")
    return make
