"""Who may use the desk's pages: names, roles and hashed passwords in a file.

Passwords are hashed by scrypt (RFC 7914) with a salt each. n = 2^15, r = 8 takes 32 MB and about
a tenth of a second: one login does not notice it, who tries millions does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from pathlib import Path
from typing import Literal

import msgspec

from flagger.errors import ConfigurationError
from flagger.files import write_atomically
from review.life import SYSTEM, Analyst

__all__ = ["MIN_PASSWORD", "User", "UserFile"]

MIN_PASSWORD = 10
"""Fewest characters of a password."""
_MAX_PASSWORD = 1_024
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_N, _R, _P = 2**15, 8, 1
_MAX_MEMORY = 2 * 128 * _N * _R


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One user as kept; salt and hash are base64."""

    name: str
    role: Literal["analyst", "lead"]
    scrypt_n: int
    scrypt_r: int
    scrypt_p: int
    salt: str
    hash: str

    def analyst(self) -> Analyst:
        """Return who acts under this name."""
        return Analyst(self.name, self.role)


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    users: list[User]


def _hash(password: str, salt: bytes, n: int, r: int, p: int) -> str:
    derived = hashlib.scrypt(
        password.encode(), salt=salt, n=n, r=r, p=p, maxmem=max(_MAX_MEMORY, 256 * n * r)
    )
    return base64.b64encode(derived).decode()


_NOBODY = User("", "analyst", _N, _R, _P, base64.b64encode(bytes(16)).decode(), "")
"""Checked where a name is unknown, so that it takes as long as a wrong password."""


class UserFile:
    """The users of a file, read anew on each question: it is small, and changes hold at once.

    Args:
        path: The file; one that does not exist has no users.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> dict[str, User]:
        """Return the users by name.

        Raises:
            ConfigurationError: It is not a file of users.
        """
        try:
            content = msgspec.json.decode(self.path.read_bytes(), type=_Content)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigurationError(
                f"{self.path} is not a file of the desk's users ({error}). "
                f"`flagger desk add-user` makes one."
            ) from error
        return {user.name: user for user in content.users}

    def check(self, name: str, password: str) -> User | None:
        """Return the user if the password is right, else None; takes as long either way."""
        user = self.all().get(name, _NOBODY)
        if len(password) > _MAX_PASSWORD:
            return None
        salt = base64.b64decode(user.salt)
        found = _hash(password, salt, user.scrypt_n, user.scrypt_r, user.scrypt_p)
        return user if hmac.compare_digest(found, user.hash) else None

    def put(self, name: str, role: str, password: str) -> None:
        """Add a user, or replace one.

        Raises:
            ConfigurationError: Name or password cannot be used.
        """
        if not _NAME.fullmatch(name) or name == SYSTEM:
            raise ConfigurationError(
                f"{name!r} cannot be a user's name: 1 to 64 of A-Z a-z 0-9 . _ @ -, not {SYSTEM!r}."
            )
        if not MIN_PASSWORD <= len(password) <= _MAX_PASSWORD:
            raise ConfigurationError(
                f"The password has {len(password)} characters; it needs {MIN_PASSWORD} to "
                f"{_MAX_PASSWORD}."
            )
        salt = secrets.token_bytes(16)
        derived = _hash(password, salt, _N, _R, _P)
        user = msgspec.convert(
            {
                "name": name,
                "role": role,
                "scrypt_n": _N,
                "scrypt_r": _R,
                "scrypt_p": _P,
                "salt": base64.b64encode(salt).decode(),
                "hash": derived,
            },
            User,
        )
        self._write(self.all() | {name: user})

    def remove(self, name: str) -> bool:
        """Remove a user; return False if there is none."""
        users = self.all()
        if users.pop(name, None) is None:
            return False
        self._write(users)
        return True

    def _write(self, users: dict[str, User]) -> None:
        text = json.dumps(msgspec.to_builtins(_Content(list(users.values()))), indent=2) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text, mode=0o600)
