"""`POST /v1/score` and `POST /v1/score/batch`."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from flagger.wire.limits import MAX_MESSAGE_BYTES
from gateway.answers import Answer, BatchAnswer, BatchItem
from gateway.deadline import Deadline, Stopwatch
from gateway.door import Door, answer_or_problem, deadline_of, json, problem_of, read_body
from gateway.problems import ProblemError
from gateway.service import Reply

__all__ = ["MAX_BATCH", "MAX_BATCHES", "SCORE_PATH", "score", "score_batch"]

SCORE_PATH = "/v1/score"
MAX_BATCH = 100
"""Most transactions of one batch: they share its deadline of half a second."""
MAX_BATCHES = 2
"""Most batches at a time: single payments, which somebody waits for, must find room beside them."""
MAX_BATCH_BYTES = 1024 * 1024
"""A batch of the largest number of transactions takes 50 KB; far larger ones are refused."""


class _Batch(msgspec.Struct):
    """The body of a batch; its members stay as they were written."""

    transactions: list[msgspec.Raw]


_batches = msgspec.json.Decoder(_Batch)


async def score(request: Request) -> Response:
    """Decide one transaction."""
    door: Door = request.app.state.door
    start = Deadline(door.budget_ms, door.clock)
    stopwatch = Stopwatch(door.clock)
    door.in_flight += 1
    try:
        if door.tracing is None:
            response = await answer_or_problem(door, SCORE_PATH, _score(request, door, stopwatch))
        else:
            with door.tracing.request(f"POST {SCORE_PATH}", request.headers) as span:
                work = _score(request, door, stopwatch)
                response = await answer_or_problem(door, SCORE_PATH, work)
                door.tracing.add_stages(span, stopwatch.laps_s)
    finally:
        door.in_flight -= 1
    outcome = "problem"
    if response.status_code == 200:
        outcome = "replayed" if "idempotent-replayed" in response.headers else "decided"
    door.metrics.request_seconds[outcome].observe(start.elapsed_ms / 1000)
    for stage, seconds in stopwatch.laps_s:
        door.metrics.stage_seconds[stage].observe(seconds)
    return response


async def _score(request: Request, door: Door, stopwatch: Stopwatch) -> Response:
    if door.in_flight > door.max_in_flight:
        raise ProblemError(
            "overloaded", f"{door.max_in_flight} requests are being worked on already."
        )
    deadline = deadline_of(request, door, door.budget_ms)
    await door.guard.admit(request.headers, "score")
    raw = await read_body(request, MAX_MESSAGE_BYTES, deadline.limit_ms() / 1000)
    stopwatch.lap("read")
    reply = await door.service.decide(raw, deadline, stopwatch)
    headers = {"Server-Timing": stopwatch.server_timing()}
    if reply.is_replay:
        headers["Idempotent-Replayed"] = "true"
    else:
        _count(door, reply.answer)
    if request.query_params.get("stages") == "1":
        reply.answer.stages_ms = {stage: round(s * 1000, 3) for stage, s in stopwatch.laps_s}
    return _shown(door, json(reply.answer, headers=headers), [reply])


async def score_batch(request: Request) -> Response:
    """Decide several transactions."""
    door: Door = request.app.state.door
    door.batches += 1
    try:
        return await answer_or_problem(door, "/v1/score/batch", _score_batch(request, door))
    finally:
        door.batches -= 1


async def _score_batch(request: Request, door: Door) -> Response:
    if door.batches > MAX_BATCHES:
        raise ProblemError("overloaded", f"{MAX_BATCHES} batches are being worked on already.")
    deadline = deadline_of(request, door, door.batch_budget_ms)
    caller = await door.guard.admit(request.headers, "score")  # counts one, whatever it holds
    raw = await read_body(request, MAX_BATCH_BYTES, deadline.limit_ms() / 1000)
    try:
        transactions = _batches.decode(raw).transactions
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("bad_batch", reason=str(error)) from error
    if len(transactions) > MAX_BATCH:
        raise ProblemError(
            "bad_batch", field="transactions", reason=f"has more than {MAX_BATCH} members"
        )
    await door.guard.count(caller, len(transactions) - 1)
    # Started in their order, so that one customer's transactions count each other in it.
    replies: list[Reply] = []
    results = await asyncio.gather(
        *(_decide_one(door, bytes(one), deadline, replies) for one in transactions)
    )
    return _shown(door, json(BatchAnswer(results=list(results))), replies)


async def _decide_one(
    door: Door, raw: bytes, deadline: Deadline, replies: list[Reply]
) -> BatchItem:
    try:
        reply = await door.service.decide(raw, deadline, Stopwatch(door.clock))
    except Exception as error:  # the others have their answers all the same
        problem = problem_of(door, error).problem
        return BatchItem(status=problem.status, problem=problem)
    if not reply.is_replay:
        _count(door, reply.answer)
    replies.append(reply)
    return BatchItem(status=200, answer=reply.answer)


def _shown(door: Door, response: Response, replies: list[Reply]) -> Response:
    """Have the shadow compare the replies once the response has left."""
    if door.shadow is not None and door.shadow.is_wanted:
        scored = [reply.scored for reply in replies if reply.scored is not None]
        response.background = BackgroundTask(door.shadow.observe, scored)
    return response


def _count(door: Door, answer: Answer) -> None:
    door.metrics.count_decision(answer.decision, answer.decision_source, answer.score)
