"""What every page needs: the case store's parts, who looks at it, and in which time zone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st
from sqlalchemy import Engine

from flagger.addresses import fill_addresses
from flagger.errors import CaseStoreError, ConfigurationError
from flagger.settings import Settings, load_settings
from review.database import open_engine
from review.door import COOKIE
from review.history import PaymentHistory
from review.life import Analyst, CaseLife
from review.logins import Logins
from review.queries import CaseQueries
from review.users import UserFile

__all__ = ["Desk", "get_desk", "now_ms", "require_analyst", "told_errors", "zone"]

logger = logging.getLogger(__name__)

_HISTORY_MS = 500
"""How long the page of a case waits for Valkey; without an answer it shows the flags alone."""


def now_ms() -> int:
    """Return the current time, epoch milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Desk:
    """The case store's parts, shared by all sessions of this process."""

    settings: Settings
    engine: Engine
    life: CaseLife
    queries: CaseQueries
    logins: Logins
    history: PaymentHistory | None


@cache
def get_desk() -> Desk:
    """Return the desk of this process."""
    settings = load_settings()
    engine = open_engine(settings.case_store_url.get_secret_value())
    return Desk(
        settings,
        engine,
        CaseLife(engine, now_ms, settings.desk_claim_minutes * 60_000),
        CaseQueries(engine, now_ms),
        Logins(
            engine,
            UserFile(settings.desk_users_file),
            now_ms,
            settings.desk_session_hours * 3_600_000,
        ),
        _history(settings),
    )


def _history(settings: Settings) -> PaymentHistory | None:
    """Return where the newest payments are; None: they are not kept, or nobody told where."""
    if settings.valkey_url is None:
        with suppress(ConfigurationError):  # no embedded stack runs here either
            settings = fill_addresses(settings)
    if settings.valkey_url is None or not settings.desk_history_payments:
        return None
    return PaymentHistory(
        settings.valkey_url,
        settings.desk_history_payments,
        settings.desk_history_days,
        timeout_ms=_HISTORY_MS,
    )


def require_analyst(desk: Desk) -> Analyst:
    """Return who is logged in; where the login has ended, say so and end the page."""
    token = st.context.cookies.get(COOKIE, "")
    analyst = desk.logins.find(token) if token else None
    if analyst is None:
        st.warning("Your login has ended.")
        st.html('<a href="login" target="_self">Log in again</a>')
        st.stop()
    return analyst


@contextmanager
def told_errors() -> Iterator[None]:
    """Tell the analyst where the case store is away; the page goes on when it is back."""
    try:
        yield
    except CaseStoreError as error:
        logger.error("%s", error)
        st.error("The case store does not answer. What you do now is not stored; try again soon.")


def zone() -> ZoneInfo:
    """Return the browser's time zone, or UTC."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")
