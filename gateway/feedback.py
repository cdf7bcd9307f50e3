"""Confirmed outcomes from whoever knows them, on their way to the labels topic."""

from __future__ import annotations

from typing import Annotated

import msgspec

from flagger.errors import BadMessageError
from flagger.wire.limits import MAX_ID_BYTES
from flagger.wire.messages import Label, check_time, parse_label, to_epoch_ms
from gateway.answers import Claim
from gateway.problems import ProblemError

__all__ = ["Feedback", "label_of", "parse_feedback"]


class Feedback(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A confirmed outcome of a transaction."""

    transaction_id: Annotated[str, msgspec.Meta(description="The transaction's id.", min_length=1)]
    is_fraud: Annotated[bool, msgspec.Meta(description="What it turned out to be.")]
    source: Annotated[
        str,
        msgspec.Meta(description="Who confirmed it: `chargeback`, `analyst`, ...", max_length=64),
    ] = "api"
    labelled_at: Annotated[
        int | str | None,
        msgspec.Meta(description="When: RFC 3339 or epoch milliseconds; absent: now."),
    ] = None
    terminal_id: Annotated[
        str | None,
        msgspec.Meta(
            description="The transaction's terminal; may be left out for a day after this gateway "
            "decided it."
        ),
    ] = None
    event_time: Annotated[
        int | str | None,
        msgspec.Meta(description="The transaction's time; may be left out as `terminal_id`."),
    ] = None


_decoder = msgspec.json.Decoder(Feedback)


def parse_feedback(raw: bytes) -> Feedback:
    """Read the body; raises ProblemError 422 with field and reason."""
    try:
        feedback = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason, _, path = str(error).partition(" - at `$")
        field = path.strip("`").lstrip(".") or None
        raise ProblemError("bad_feedback", field=field, reason=reason) from error
    if len(feedback.transaction_id.encode(errors="surrogatepass")) > MAX_ID_BYTES:
        raise ProblemError("bad_feedback", field="transaction_id", reason="is too long")
    return feedback


def label_of(feedback: Feedback, stored: Claim | None, now_ms: int) -> Label:
    """Return the label, with what the stored decision tells of its transaction.

    Args:
        feedback: What was sent.
        stored: The gateway's decision about the transaction, if it is still kept.
        now_ms: The current time.

    Raises:
        ProblemError: 422 or 409.
    """
    terminal_id, event_time = feedback.terminal_id, feedback.event_time
    if stored is not None and stored.terminal_id:
        try:
            fits = (terminal_id in (None, stored.terminal_id)) and (
                event_time is None or to_epoch_ms(event_time) == stored.event_time_ms
            )
        except BadMessageError as error:
            raise ProblemError.of_message(error, "bad_feedback") from error
        if not fits:
            raise ProblemError(
                "label_conflict", "The decided transaction has another terminal_id or event_time."
            )
        terminal_id, event_time = stored.terminal_id, stored.event_time_ms
    if terminal_id is None or event_time is None:
        raise ProblemError(
            "bad_feedback",
            "This gateway keeps no decision about the transaction: send its terminal_id and "
            "event_time too.",
            field="terminal_id" if terminal_id is None else "event_time",
            reason="is missing",
        )
    label = Label(
        transaction_id=feedback.transaction_id,
        is_fraud=feedback.is_fraud,
        source=feedback.source,
        labelled_at=now_ms if feedback.labelled_at is None else feedback.labelled_at,
        terminal_id=terminal_id,
        event_time=event_time,
    )
    try:
        label = parse_label(msgspec.json.encode(label), now_ms)
        if feedback.labelled_at is not None:
            _check_labelled_at(label, now_ms)
        return label
    except (BadMessageError, UnicodeEncodeError) as error:
        if isinstance(error, BadMessageError):
            raise ProblemError.of_message(error, "bad_feedback") from error
        raise ProblemError("bad_feedback", reason="an id is not valid Unicode") from error


def _check_labelled_at(label: Label, now_ms: int) -> None:
    """Raise BadMessageError unless it lies between the transaction and a day from now."""
    labelled_ms = to_epoch_ms(label.labelled_at, "labelled_at")
    if labelled_ms < label.event_time_ms:
        raise BadMessageError(
            "lies before the transaction; is it seconds instead of milliseconds?",
            field="labelled_at",
        )
    check_time(labelled_ms, "labelled_at", now_ms)
