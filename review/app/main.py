"""The desk's pages; Streamlit runs this file for each session and each click."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from review.app import figures_page, queue_page
from review.app.context import get_desk, require_analyst, told_errors
from review.app.look import STYLE, account

st.set_page_config(
    page_title="Review desk", page_icon=str(Path(__file__).parent / "flag.png"), layout="wide"
)
st.html(STYLE)
with told_errors():
    desk = get_desk()
    analyst = require_analyst(desk)
    st.html(account(analyst.name, analyst.role))
    page = st.navigation(
        [
            st.Page(
                lambda: queue_page.show(desk, analyst),
                title="Queue",
                icon=":material/inbox:",
                url_path="queue",
                default=True,
            ),
            st.Page(
                lambda: figures_page.show(desk),
                title="Figures",
                icon=":material/monitoring:",
                url_path="figures",
            ),
        ],
        position="top",
    )
    page.run()
