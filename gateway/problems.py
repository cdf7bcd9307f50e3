"""What the caller is told when there is no decision: RFC 9457 problem details.

A problem names its kind, says what happened and what to do; it never carries ids, addresses or
text of internal errors.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.responses import Response

from flagger.errors import BadMessageError, FlaggerError

__all__ = ["PROBLEMS", "PROBLEM_MEDIA_TYPE", "RETRY_AFTER_S", "Problem", "ProblemError"]

PROBLEM_MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""What a 503 asks the caller to wait, and a 429 that knows no better."""

PROBLEMS: dict[str, tuple[int, str]] = {
    "unauthenticated": (401, "Who asks is not known"),
    "forbidden": (403, "The key may not do this"),
    "rate_limited": (429, "Too many requests with this key or token"),
    "bad_request": (400, "The request is not valid"),
    "slow_request": (408, "The request did not arrive in time"),
    "bad_batch": (422, "The batch is not valid"),
    "bad_feedback": (422, "The label is not valid"),
    "unknown_transaction": (404, "No decision is stored for this transaction"),
    "label_conflict": (409, "The label speaks of another transaction"),
    "bad_transaction": (422, "The transaction is not valid"),
    "too_large": (413, "The request is too large"),
    "head_too_large": (431, "The headers are too large"),
    "unsupported_media_type": (415, "The request is not JSON"),
    "id_reused": (409, "This transaction_id belongs to another transaction"),
    "decided_by_stream": (409, "The transaction was already decided by the stream"),
    "log_unavailable": (503, "The decision could not be recorded"),
    "state_unavailable": (503, "Stored decisions are away"),
    "overloaded": (503, "Too many requests in flight"),
    "disconnected": (400, "The request ended early"),
    "not_found": (404, "No such resource"),
    "method_not_allowed": (405, "Method not allowed"),
    "internal": (500, "Internal error"),
}
"""Kind (also the label in metrics) -> HTTP status and title."""


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Problem details (RFC 9457)."""

    type: Annotated[
        str,
        msgspec.Meta(
            description="The kind of problem; compare this, not the texts.",
            examples=["urn:fraud-flagger:problem:bad_transaction"],
        ),
    ]
    title: Annotated[str, msgspec.Meta(description="The kind in words.")]
    status: Annotated[int, msgspec.Meta(description="The HTTP status.", examples=[422])]
    detail: Annotated[
        str | None, msgspec.Meta(description="What happened this time and what to do.")
    ] = None
    field: Annotated[
        str | None, msgspec.Meta(description="The offending field.", examples=["amount"])
    ] = None
    reason: Annotated[
        str | None,
        msgspec.Meta(
            description="What is wrong with the field.", examples=["-1 is not between 0 and 1e+09"]
        ),
    ] = None


class ProblemError(FlaggerError):
    """A request ends without a decision.

    Args:
        kind: A key of `PROBLEMS`.
        detail: What happened and what the caller can do; no ids.
        field: The offending field.
        reason: What is wrong with it.
        status: HTTP status where it differs from the kind's.
        retry_after_s: Seconds that the caller should wait.
        who: Who was refused, for the audit log alone; None: that is not known.
    """

    def __init__(
        self,
        kind: str,
        detail: str | None = None,
        *,
        field: str | None = None,
        reason: str | None = None,
        status: int | None = None,
        retry_after_s: int = RETRY_AFTER_S,
        who: str | None = None,
    ) -> None:
        usual_status, title = PROBLEMS[kind]
        super().__init__(f"{title}: {detail or reason}")
        self.kind = kind
        self.who = who
        self._retry_after_s = retry_after_s
        self.problem = Problem(
            type=f"urn:fraud-flagger:problem:{kind}",
            title=title,
            status=status or usual_status,
            detail=detail,
            field=field,
            reason=reason,
        )

    @classmethod
    def of_message(cls, error: BadMessageError, kind: str = "bad_transaction") -> ProblemError:
        """Return the 422 for a message that is not valid."""
        return cls(kind, str(error), field=error.field, reason=error.reason)

    def response(self) -> Response:
        """Return the HTTP answer."""
        status = self.problem.status
        headers = {}
        if status in (429, 503):
            headers["Retry-After"] = str(self._retry_after_s)
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(
            msgspec.json.encode(self.problem),
            status_code=status,
            media_type=PROBLEM_MEDIA_TYPE,
            headers=headers,
        )
