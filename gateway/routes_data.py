"""Stored decisions, labels and models."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from flagger.errors import StateStoreError
from flagger.features.hashing import key_of
from flagger.models import list_versions
from flagger.wire.limits import MAX_ID_BYTES
from gateway.audit import NOBODY
from gateway.door import BODY_LIMIT_S, Door, answer_or_problem, json, read_body
from gateway.feedback import label_of, parse_feedback
from gateway.lookup import Found
from gateway.problems import ProblemError
from gateway.producer import TransactionLogError
from gateway.state import StoredClaim

__all__ = ["decision", "feedback", "models", "refresh_models"]

MAX_LABEL_BYTES = 4 * 1024
"""A label takes 200 bytes."""
_READ_TIMEOUT_MS = 100.0
_ARCHIVE_TIMEOUT_MS = 1_000.0
"""A table that nobody asked for a while may take its time; nobody's payment waits for this."""
_LABEL_TIMEOUT_MS = 1_000.0


async def _stored(door: Door, transaction_id: str) -> StoredClaim | None:
    key = np.array([key_of(transaction_id)], dtype=np.uint64)
    try:
        return await door.backends.state.read_claim(key, _READ_TIMEOUT_MS)
    except StateStoreError as error:
        raise ProblemError("state_unavailable", "Stored decisions cannot be read now.") from error


async def decision(request: Request) -> Response:
    """Tell what this gateway decided about a transaction."""
    door: Door = request.app.state.door
    return await answer_or_problem(door, "/v1/decisions", _decision(request, door))


async def _decision(request: Request, door: Door) -> Response:
    await door.guard.admit(request.headers, "score")
    transaction_id = request.path_params["transaction_id"]
    try:
        is_ours = 0 < len(transaction_id.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:
        is_ours = False
    found = await _look_up(door, transaction_id) if is_ours else None
    if found is None:
        raise ProblemError(
            "unknown_transaction",
            "Decisions of the gateway are kept for a day; all are on the decisions topic.",
        )
    if not found.recorded:
        raise ProblemError(
            "unknown_transaction",
            "It was decided, but is not recorded yet: send the transaction once more.",
        )
    return json(found.answer)


async def _look_up(door: Door, transaction_id: str) -> Found | None:
    """Return the first decision found; one that cannot be asked now is an error, not a "no"."""
    try:
        for lookup, timeout_ms in zip(
            door.backends.lookups(), (_READ_TIMEOUT_MS, _ARCHIVE_TIMEOUT_MS), strict=False
        ):
            found = await lookup.find(transaction_id, timeout_ms)
            if found is not None:
                return found
    except StateStoreError as error:
        raise ProblemError("state_unavailable", "Stored decisions cannot be read now.") from error
    return None


async def feedback(request: Request) -> Response:
    """Take a label."""
    door: Door = request.app.state.door
    return await answer_or_problem(door, "/v1/feedback", _feedback(request, door))


async def _feedback(request: Request, door: Door) -> Response:
    await door.guard.admit(request.headers, "feedback")
    sent = parse_feedback(await read_body(request, MAX_LABEL_BYTES, BODY_LIMIT_S))
    try:
        stored = await _stored(door, sent.transaction_id)
    except ProblemError:
        if sent.terminal_id is None or sent.event_time is None:
            raise
        stored = None
    except UnicodeEncodeError:
        raise ProblemError(
            "bad_feedback", field="transaction_id", reason="is not valid Unicode"
        ) from None
    claim = None if stored is None else stored.claim
    label = label_of(sent, claim, door.clock.now_ms())
    try:
        await door.backends.log.write_label(msgspec.json.encode(label), _LABEL_TIMEOUT_MS)
    except TransactionLogError as error:
        raise ProblemError(
            "log_unavailable", "Kafka did not acknowledge the label; send it again."
        ) from error
    return json(label, status=202)


async def models(request: Request) -> Response:
    """Tell which model decides."""
    door: Door = request.app.state.door
    return await answer_or_problem(door, "/v1/models", _models(request, door))


async def _models(request: Request, door: Door) -> Response:
    await door.guard.admit(request.headers, "score")
    return json(_live(door) | {"versions": list(await _versions(door))})


async def refresh_models(request: Request) -> Response:
    """Follow the pointer to the live version now."""
    door: Door = request.app.state.door
    return await answer_or_problem(door, "/v1/models/refresh", _refresh_models(request, door))


async def _refresh_models(request: Request, door: Door) -> Response:
    """Follow the pointer; whoever tries is in the audit log before anything changes."""
    action = "models.refresh"
    try:
        caller = await door.guard.admit(request.headers, "admin")
    except ProblemError as error:
        who = error.who or NOBODY
        await asyncio.to_thread(door.audit.write_refused, action, who, why=error.kind)
        raise
    before = door.backends.live.current.model.version
    await asyncio.to_thread(door.audit.write, action, caller.id, outcome="begun", before=before)
    switched = await door.backends.live.refresh()
    after = door.backends.live.current.model.version
    await asyncio.to_thread(
        door.audit.write, action, caller.id, outcome="done", before=before, after=after
    )
    return json(_live(door) | {"switched": switched})


def _entry(door: Door) -> tuple[str, str]:
    model = door.backends.live.current.model
    return model.name, model.version


def _live(door: Door) -> dict[str, object]:
    serving = door.backends.live.current
    name, version = _entry(door)
    return {
        "model": name,
        "model_version": version,
        "policy_version": serving.policy.version,
        "review_threshold": serving.policy.review_threshold,
        "decline_threshold": serving.policy.decline_threshold,
    }


async def _versions(door: Door) -> tuple[str, ...]:
    return await asyncio.to_thread(list_versions, door.repository)
