"""API keys: made, kept as hashes in a file, found again.

A key reads `ffk_<id>_<secret>`. The secret has 256 random bits, so its SHA-256 tells nothing about
it and a slow password hash would only cost time. Several keys may be valid for one caller: to
rotate, create a new one, switch the caller over, revoke the old one.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec

from flagger.errors import ConfigurationError
from flagger.files import write_atomically

__all__ = ["KEY_PREFIX", "SCOPES", "ApiKey", "KeyFile", "Scope", "new_key"]

Scope = Literal["score", "feedback", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""What a key may do; `admin` may do everything."""
KEY_PREFIX = "ffk_"
"""Begins each key, so that scanners for leaked secrets recognise one."""
_ID_BYTES, _SECRET_BYTES = 4, 32


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as it is kept.

    Attributes:
        id: Its public part, 8 hex digits.
        name: Whose it is.
        scopes: What it may do.
        sha256: Hash of the whole key, hex.
        created_ms: When it was made, epoch milliseconds.
        expires_ms: From then on it is refused; None: never.
        revoked_ms: Since then it is refused.
        rate_per_s: Requests per second over all gateways (as many may come at once); None: no
            limit.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    rate_per_s: float | None = None

    def state(self, now_ms: int) -> Literal["valid", "expired", "revoked"]:
        """Return whether the key may be used now."""
        if self.revoked_ms is not None:
            return "revoked"
        if self.expires_ms is not None and now_ms >= self.expires_ms:
            return "expired"
        return "valid"


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[ApiKey]


def new_key(
    name: str,
    scopes: tuple[Scope, ...],
    now_ms: int,
    *,
    expires_ms: int | None = None,
    rate_per_s: float | None = None,
) -> tuple[ApiKey, str]:
    """Return a new key as it is kept and as its owner gets it, which is never shown again."""
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"{KEY_PREFIX}{key_id}_{secrets.token_hex(_SECRET_BYTES)}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ApiKey(key_id, name, scopes, digest, now_ms, expires_ms, None, rate_per_s), text


@dataclass
class KeyFile:
    """The keys of a file; `refresh` follows its changes.

    Attributes:
        path: The file; it need not exist as long as no key is needed.
    """

    path: Path
    _keys: dict[str, ApiKey]
    _stamp: tuple[int, int]

    @classmethod
    def open(cls, path: Path) -> KeyFile:
        """Read a file; one that does not exist has no keys.

        Raises:
            ConfigurationError: It is not a file of keys.
        """
        file = cls(path, {}, (0, 0))
        file.refresh()
        return file

    @property
    def keys(self) -> list[ApiKey]:
        """All keys, in the order of their making."""
        return list(self._keys.values())

    def refresh(self) -> bool:
        """Read the file if it has changed; return True if so; raises as `open` does."""
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp == self._stamp:
                return False
            content = msgspec.json.decode(self.path.read_bytes(), type=_Content)
        except FileNotFoundError:
            changed, self._keys, self._stamp = bool(self._keys), {}, (0, 0)
            return changed
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{self.path} is not a file of API keys ({error}). `flagger keys create` makes one."
            ) from error
        self._keys = {key.id: key for key in content.keys}
        self._stamp = stamp
        return True

    def find(self, text: str) -> ApiKey | None:
        """Return the key that was presented, whatever its state; None if there is none."""
        key_id, _, _ = text.removeprefix(KEY_PREFIX).partition("_")
        key = self._keys.get(key_id)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if key is None or not hmac.compare_digest(digest, key.sha256):
            return None
        return key

    def put(self, key: ApiKey) -> None:
        """Add or replace a key and write the file, readable for its owner alone.

        Keys that somebody else has put there since it was read are kept.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.parent):
            self.refresh()
            self._keys[key.id] = key
            text = json.dumps(msgspec.to_builtins(_Content(self.keys)), indent=2) + "\n"
            write_atomically(self.path, text, mode=0o600)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
