"""The API's documentation: what each operation takes, answers and refuses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI

from flagger.wire.limits import MAX_ID_BYTES
from gateway.problems import PROBLEM_MEDIA_TYPE, PROBLEMS
from gateway.routes_score import MAX_BATCH
from gateway.schemas import ANSWER_EXAMPLE, TRANSACTION_EXAMPLE, components

__all__ = ["document"]


def _content(media_type: str, schema: str, example: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    if example is not None:
        content["example"] = example
    return {media_type: content}


def _object(example: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}, "example": example}}


def _problem(status: int) -> dict[str, Any]:
    titles = [title for code, title in PROBLEMS.values() if code == status]
    response: dict[str, Any] = {
        "description": " / ".join(titles),
        "content": _content(PROBLEM_MEDIA_TYPE, "Problem"),
    }
    if status in (429, 503):
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        }
    return response


def _problems(*more: int) -> dict[str, Any]:
    return {str(status): _problem(status) for status in sorted((401, 403, 429, 500, *more))}


_DEADLINE = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "description": "The caller's own budget in milliseconds, if it is smaller than the gateway's.",
    "schema": {"type": "number", "minimum": 5},
    "example": 80,
}
_TRANSACTION_ID = {
    "name": "transaction_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES},
    "example": TRANSACTION_EXAMPLE["transaction_id"],
}
_STAGES = {
    "name": "stages",
    "in": "query",
    "description": "`1`: the answer tells where the time went.",
    "schema": {"type": "string", "enum": ["0", "1"]},
    "example": "1",
}

SCORE: dict[str, Any] = {
    "summary": "Decide one transaction",
    "description": "Answers within the deadline: by the model, else as FLAGGER_GATEWAY_FALLBACK "
    "says. The same transaction_id gets the same answer for a day. Needs the scope `score`.",
    "parameters": [_DEADLINE, _STAGES],
    "requestBody": {
        "required": True,
        "content": _content("application/json", "Transaction", TRANSACTION_EXAMPLE),
    },
    "responses": {
        "200": {
            "description": "The decision; it is in the transactions topic by now.",
            "content": _content("application/json", "Answer", ANSWER_EXAMPLE),
            "headers": {
                "Idempotent-Replayed": {
                    "description": "`true` where an earlier request got this decision.",
                    "schema": {"type": "string", "enum": ["true"]},
                },
                "Server-Timing": {
                    "description": "Milliseconds per stage.",
                    "schema": {"type": "string"},
                },
            },
        },
        **_problems(400, 408, 409, 413, 415, 422, 503),
    },
}
BATCH: dict[str, Any] = {
    "summary": "Decide several transactions",
    "description": f"At most {MAX_BATCH}; they share one deadline. One customer's transactions "
    "count each other in their order. Each has its own result: a bad one spoils none of the "
    "others. Needs the scope `score`; a rate limit counts each transaction.",
    "parameters": [_DEADLINE],
    "requestBody": {
        "required": True,
        "content": _content("application/json", "Batch", {"transactions": [TRANSACTION_EXAMPLE]}),
    },
    "responses": {
        "200": {
            "description": "One result for each transaction, in their order.",
            "content": _content(
                "application/json",
                "BatchAnswer",
                {"results": [{"status": 200, "answer": ANSWER_EXAMPLE}]},
            ),
        },
        **_problems(400, 408, 413, 415, 422, 503),
    },
}
DECISION: dict[str, Any] = {
    "summary": "What was decided about a transaction?",
    "description": "Decisions of the gateway, for a day. Needs the scope `score`.",
    "parameters": [_TRANSACTION_ID],
    "responses": {
        "200": {
            "description": "The first answer.",
            "content": _content("application/json", "Answer", ANSWER_EXAMPLE),
        },
        **_problems(404, 503),
    },
}
_FEEDBACK_EXAMPLE: dict[str, Any] = {
    "transaction_id": TRANSACTION_EXAMPLE["transaction_id"],
    "is_fraud": True,
    "source": "chargeback",
    "terminal_id": TRANSACTION_EXAMPLE["terminal_id"],
    "event_time": TRANSACTION_EXAMPLE["event_time"],
}
FEEDBACK: dict[str, Any] = {
    "summary": "Label a transaction",
    "description": "Tells what a transaction turned out to be. A repeat changes nothing, another "
    "outcome corrects the first. Needs the scope `feedback`.",
    "requestBody": {
        "required": True,
        "content": _content("application/json", "Feedback", _FEEDBACK_EXAMPLE),
    },
    "responses": {
        "202": {
            "description": "The label; it is in the labels topic by now.",
            "content": _content(
                "application/json",
                "Label",
                _FEEDBACK_EXAMPLE | {"labelled_at": "2026-02-20T09:00:00Z"},
            ),
        },
        **_problems(400, 408, 409, 413, 415, 422, 503),
    },
}
_LIVE_EXAMPLE = {
    "model": "fraud_onnx",
    "model_version": "3",
    "policy_version": "3",
    "review_threshold": 0.5,
    "decline_threshold": 0.9,
}
MODELS: dict[str, Any] = {
    "summary": "Which model decides?",
    "description": "The live version with its thresholds, and those that stand beside it. Needs "
    "the scope `score`.",
    "responses": {
        "200": {
            "description": "The models.",
            "content": _object(_LIVE_EXAMPLE | {"versions": ["2", "3"]}),
        },
        **_problems(),
    },
}
REFRESH: dict[str, Any] = {
    "summary": "Follow the pointer to the live version now",
    "description": "This process does so every second anyway. Needs the scope `admin`.",
    "responses": {
        "200": {
            "description": "The live version, and whether it has changed.",
            "content": _object(_LIVE_EXAMPLE | {"switched": True}),
        },
        **_problems(),
    },
}


def _for_orchestrator(summary: str, example: dict[str, Any], bad: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "security": [],
        "responses": {
            "200": {"description": "Yes.", "content": _object(example)},
            "503": {"description": bad, "content": _object(example)},
        },
    }


HEALTHZ = _for_orchestrator("Is the process alive?", {"alive": True}, "Only a restart helps.")
READYZ = _for_orchestrator(
    "Can it decide?", {"ready": True, "missing": {}}, "No: `missing` says what and why."
)
METRICS: dict[str, Any] = {
    "summary": "Prometheus metrics",
    "security": [],
    "responses": {
        "200": {
            "description": "The metrics of this process.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
}
_SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`ffk_...`), or a JWT of the identity provider.",
    },
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}


def document(
    app: FastAPI, routes: Iterable[tuple[str, str, Any, dict[str, Any]]]
) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        app: For title and version.
        routes: `routes.ROUTES`.
    """
    paths: dict[str, dict[str, Any]] = {}
    for method, path, answer, operation in routes:
        named = {"operationId": answer.__name__} | operation
        paths.setdefault(path.replace(":path", ""), {})[method.lower()] = named
    return {
        "openapi": "3.1.0",
        "info": {"title": app.title, "version": app.version, "summary": app.summary},
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {"schemas": components(), "securitySchemes": _SECURITY},
    }
