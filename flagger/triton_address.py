"""Addresses of Triton: host:port, or grpcs:// for TLS with its files in the query."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from flagger.errors import ConfigurationError

__all__ = ["endpoint"]

_FILES = {"ca": "root_certificates", "cert": "certificate_chain", "key": "private_key"}


def endpoint(url: str) -> dict[str, Any]:
    """Return the client's arguments for an address.

    Args:
        url: `host:port`, or `grpcs://host:port?ca=/a.pem&cert=/b.pem&key=/c.pem`: TLS; `ca` holds
            the server's authorities (default: gRPC's own), the others our certificate (mTLS).

    Raises:
        ConfigurationError: Unknown scheme or option, or a file cannot be read.

    >>> endpoint("triton:8001")
    {'url': 'triton:8001'}
    """
    if "://" not in url:
        return {"url": url}
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if parts.scheme != "grpcs" or not parts.netloc or options.keys() - _FILES.keys():
        raise ConfigurationError(
            f"FLAGGER_TRITON_URL {url!r} is not an address: write host:port, or "
            "grpcs://host:port?ca=FILE&cert=FILE&key=FILE for TLS."
        )
    for name, path in options.items():
        if not os.access(path, os.R_OK):
            raise ConfigurationError(
                f"FLAGGER_TRITON_URL: {name}={path} is not there or cannot be read."
            )
    files = {_FILES[name]: path for name, path in options.items()}
    return {"url": parts.netloc, "ssl": True, **files}
