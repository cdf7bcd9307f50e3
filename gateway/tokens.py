"""JSON Web Tokens of an identity provider, as an alternative to API keys (RFC 7519, RFC 9068)."""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeGuard

import jwt

from flagger.errors import ConfigurationError
from flagger.settings import Settings

__all__ = ["TokenVerifier"]

ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
"""Asymmetric ones only: the gateway holds no secret that could sign."""
_LEEWAY_S = 30
"""How far our clock and the provider's may be apart."""
_REFRESH_S = 300.0
"""How often the provider's keys are read."""
_UNKNOWN_REFRESH_S = 10.0
"""How soon they are read again because a token names a key that is not among them: the provider has
changed its keys. Whoever makes tokens up asks the provider no more often than this."""
_FETCH_TIMEOUT_S = 5.0
MAX_SUBJECT_BYTES = 2_048
"""Longest `sub`: a SPIFFE ID's limit; OpenID Connect allows 255."""
_NO_KEYS = (OSError, HTTPException, ValueError, TypeError, AttributeError, RecursionError)
"""How reading the keys fails: no answer, half an answer, no JSON, or JSON of another shape."""

logger = logging.getLogger(__name__)


class TokenVerifier:
    """Checks tokens against the provider's public keys.

    Args:
        settings: `gateway_jwt_*`.

    Raises:
        ConfigurationError: The keys cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._source = settings.gateway_jwt_jwks or ""
        self._issuer = settings.gateway_jwt_issuer
        self._audience = settings.gateway_jwt_audience
        if "://" in self._source and not self._source.startswith("https://"):
            raise ConfigurationError("FLAGGER_GATEWAY_JWT_JWKS must be a file or an https:// URL.")
        self._read_s = time.monotonic()
        self._has_unknown = False
        self._keys = self._read()

    def verify(self, token: str) -> tuple[str, tuple[str, ...]] | None:
        """Return (subject, scopes) of a token, or None if it does not hold now."""
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            if key_id not in self._keys:
                self._has_unknown = True
                return None
            key = self._keys[key_id]
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name] if key.algorithm_name in ALGORITHMS else [],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, RecursionError):  # brackets, thousands deep
            return None
        subject, scope = claims["sub"], claims.get("scope")
        if not _is_subject(subject):
            return None
        return subject, tuple(scope.split()) if isinstance(scope, str) else ()

    def refresh(self) -> None:
        """Read the keys again if they are old; those we have stay if that fails. Blocks."""
        pause_s = _UNKNOWN_REFRESH_S if self._has_unknown else _REFRESH_S
        if time.monotonic() - self._read_s < pause_s:
            return
        self._read_s = time.monotonic()
        self._has_unknown = False
        try:
            self._keys = self._read()
        except ConfigurationError as error:
            logger.error("Going on with the token keys read before: %s", error)

    def _read(self) -> dict[str | None, jwt.PyJWK]:
        try:
            if self._source.startswith("https://"):
                with urllib.request.urlopen(  # noqa: S310 - https only, see above
                    self._source, timeout=_FETCH_TIMEOUT_S
                ) as response:
                    text = response.read()
            else:
                text = Path(self._source).read_bytes()
            return {key.key_id: key for key in jwt.PyJWKSet.from_dict(json.loads(text)).keys}
        except (*_NO_KEYS, jwt.PyJWTError) as error:
            raise ConfigurationError(
                f"FLAGGER_GATEWAY_JWT_JWKS {self._source!r} gives no keys ({error})."
            ) from error


def _is_subject(subject: object) -> TypeGuard[str]:
    """Return True for a name that may be counted and logged; JSON can hold what is no Unicode."""
    try:
        return isinstance(subject, str) and 0 < len(subject.encode()) <= MAX_SUBJECT_BYTES
    except UnicodeEncodeError:
        return False
