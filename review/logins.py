"""Logins of the desk's pages, kept in the case store so that every page server knows them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

from sqlalchemy import Engine, delete

from review.database import transaction
from review.life import Analyst
from review.tables import Login
from review.users import UserFile

__all__ = ["Logins"]


class Logins:
    """Starts, finds and ends logins.

    Args:
        engine: The case store.
        users: Who may log in.
        clock_ms: Returns the current time, epoch milliseconds.
        session_ms: How long a login lasts.
    """

    def __init__(
        self, engine: Engine, users: UserFile, clock_ms: Callable[[], int], session_ms: int
    ) -> None:
        self._engine = engine
        self._users = users
        self._clock_ms = clock_ms
        self.session_ms = session_ms

    def start(self, name: str, password: str) -> str | None:
        """Return a token for the browser to keep, or None if name and password do not fit."""
        if self._users.check(name, password) is None:
            return None
        token = secrets.token_urlsafe(32)
        now_ms = self._clock_ms()
        with transaction(self._engine) as session:
            session.execute(delete(Login).where(Login.expires_at_ms <= now_ms))
            ends_ms = now_ms + self.session_ms
            session.add(Login(token_sha256=_digest(token), name=name, expires_at_ms=ends_ms))
        return token

    def find(self, token: str) -> Analyst | None:
        """Return whose token it is; None if it is none, has ended, or its user was removed."""
        with transaction(self._engine) as session:
            login = session.get(Login, _digest(token))
        if login is None or login.expires_at_ms <= self._clock_ms():
            return None
        user = self._users.all().get(login.name)
        return None if user is None else user.analyst()

    def end(self, token: str) -> None:
        """Forget a token."""
        with transaction(self._engine) as session:
            session.execute(delete(Login).where(Login.token_sha256 == _digest(token)))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
