"""Serves the desk's pages: Streamlit behind the desk's own door."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.middleware import Middleware

from flagger.errors import ConfigurationError
from flagger.settings import Settings
from review.database import open_engine, require_layout
from review.door import LoginRequired, LoginRoutes
from review.logins import Logins
from review.users import UserFile

__all__ = ["serve"]

_SCRIPT = Path(__file__).parent / "app" / "main.py"
_DRAIN_S = 3


def serve(settings: Settings, host: str, port: int) -> None:
    """Answer on host:port until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: There is no user yet, or the case store needs migrating.
        CaseStoreError: The case store is away.
    """
    users = UserFile(settings.desk_users_file)
    if not users.all():
        raise ConfigurationError(
            f"{users.path} has no users. Make one: `flagger desk add-user NAME --role lead`."
        )
    engine = open_engine(settings.case_store_url.get_secret_value())
    require_layout(engine)
    logins = Logins(
        engine, users, lambda: time.time_ns() // 1_000_000, settings.desk_session_hours * 3_600_000
    )
    # After the checks: they take seconds.
    import streamlit as st

    import review.app.case_page
    import review.app.figures_page
    import review.app.queue_page  # noqa: F401

    app = st.App(
        _SCRIPT,
        routes=LoginRoutes(logins).routes(),
        middleware=[Middleware(LoginRequired, logins=logins)],
    )
    scheme = "http" if settings.desk_tls_certificate is None else "https"
    print(f"desk at {scheme}://{host}:{port}; stop with Ctrl-C", file=sys.stderr)  # noqa: T201
    # Streamlit collects garbage after every run of a page, each second for each open queue. What is
    # loaded by now stays anyway: left out, an open queue takes 2 % of a core instead of 13 %.
    gc.collect()
    gc.freeze()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
        ssl_certfile=settings.desk_tls_certificate,
        ssl_keyfile=settings.desk_tls_key,
    )
    _Server(config).run()


class _Server(uvicorn.Server):
    """Ends with status 0 on a signal, as the other services do; uvicorn's raises it once more."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal does not wait for open requests."""
        self.force_exit = self.should_exit
        self.should_exit = True
