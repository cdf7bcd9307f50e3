"""An API key of a run's own, for the gateways that it starts."""

from __future__ import annotations

import time
from pathlib import Path

from flagger.settings import ENV_PREFIX
from gateway.keys import KeyFile, new_key

__all__ = ["API_KEY_VARIABLE", "make_key"]

API_KEY_VARIABLE = "GATEWAY_API_KEY"
"""Names the key for Locust: a command line is seen by everybody on the machine."""


def make_key(folder: Path) -> tuple[str, dict[str, str]]:
    """Return a new key and the variables that make a gateway accept it.

    Args:
        folder: Where the file of keys is written.
    """
    path = folder / "gateway-keys.json"
    path.unlink(missing_ok=True)
    key, text = new_key("loadtest", ("score",), time.time_ns() // 1_000_000)
    KeyFile.open(path).put(key)
    return text, {f"{ENV_PREFIX}GATEWAY_KEYS_FILE": str(path.resolve())}
