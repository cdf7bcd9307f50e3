"""Entity state, stored decisions and accepted transactions in Valkey, from the event loop.

Entity records are the streamer's: the gateway reads them and never writes them. Its own are

- `ff:d:` and the transaction's 64-bit key: the stored decision. One byte for how far it has come
  (`c` claimed: decided, perhaps not in the log yet; `w` written: in the log), then the `Claim`;
- `ff:p:` and the customer's 64-bit key: a hash of the transactions that were accepted and are not
  in the customer's record yet (`pending`), and `n`, the last place given;
- `ff:q:` and an API key's id, or `jwt:` and the hash of a token's subject: its rate limit.

All keys of a request must be on one server: a primary with replicas, not a Valkey Cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flagger.errors import StateStoreError
from flagger.features import TransactionBatch
from flagger.state.store import decode_records, encode_keys
from gateway.answers import Claim
from gateway.link import Command, Script, ValkeyLink, require
from gateway.pending import Pending, entry_of, log_place

__all__ = ["DECISION_TTL_S", "MAX_PENDING", "AsyncStateStore", "SeenState", "StoredClaim"]

DECISION_TTL_S = 24 * 3_600
"""How long a repeat gets the first answer: payment retries come within minutes, batch re-runs
within a day. At about 300 bytes each, 100 requests/s keep 2.6 GB."""
MAX_PENDING = 1_000
"""Most accepted transactions of one customer that wait for its record: five a second for three
minutes without a streamer. Beyond, the customer's requests are not scored."""
PENDING_TTL_S = 15 * 60
"""How long a customer's accepted transactions are kept after the last one; long enough for a
streamer's restart. At about 250 bytes each, 100 requests/s keep 23 MB."""
_CLAIMED, _WRITTEN = b"c", b"w"

_claims = msgspec.msgpack.Decoder(Claim)

_ADMIT = Script(
    """
local stored = redis.call('GET', KEYS[3])
if stored then return {stored} end
local now_s = redis.call('TIME')[1]
if redis.call('HEXISTS', KEYS[4], ARGV[1]) == 0 then
  if redis.call('HLEN', KEYS[4]) > tonumber(ARGV[3]) then return {false, 'full'} end
  local place = redis.call('HINCRBY', KEYS[4], 'n', 1)
  redis.call('HSET', KEYS[4], ARGV[1], struct.pack('>I4I4', place, now_s) .. ARGV[2])
  redis.call('EXPIRE', KEYS[4], ARGV[4])
end
return {false, now_s, redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2]),
        redis.call('HVALS', KEYS[4])}
"""
)
"""Accepts a transaction and reads all that its decision needs, in one step.

KEYS: customer record, terminal record, stored decision, the customer's accepted transactions.
ARGV: transaction key, entry, most entries, seconds to keep them.
"""
_MARK = Script(
    """
local stored = redis.call('GET', KEYS[1])
local first = stored and string.sub(stored, 1, 1) == 'w' and stored
if not first then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  local entry = redis.call('HGET', KEYS[2], ARGV[3])
  if entry then redis.call('HSET', KEYS[2], ARGV[3], string.sub(entry, 1, -11) .. ARGV[4]) end
end
if #ARGV > 4 then redis.call('HDEL', KEYS[2], unpack(ARGV, 5)) end
return first
"""
)
"""Stores that a transaction is in the log, and where, unless it was there before; returns that.

KEYS: stored decision, the customer's accepted transactions. ARGV: decision, seconds to keep it,
transaction key, place in the log as the last 10 bytes of `PENDING`, keys of entries that can go.
"""
_LIMIT = Script(
    """
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + now[2] / 1000
local step_ms, burst_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local due, at = string.match(redis.call('GET', KEYS[1]) or '', '(%S+) (%S+)')
local ahead_ms = (at or now_ms) - now_ms
local due_ms = math.max((due or now_ms) - math.max(ahead_ms, 0), now_ms)
local wait_ms = math.max(math.ceil(due_ms - now_ms - burst_ms), 0)
if wait_ms == 0 then due_ms = due_ms + step_ms * ARGV[3] end
if wait_ms == 0 or ahead_ms > 0 then
  redis.call('SET', KEYS[1], string.format('%.3f %.3f', due_ms, now_ms),
             'PX', math.ceil(due_ms - now_ms) + 1)
end
return wait_ms
"""
)
"""Generic cell rate algorithm (ITU-T I.371): 0, or milliseconds to wait.

What is kept says when it was written: where that lies ahead, the server's clock was set back, or a
replica with another clock took over, and what is due moves along. Else nobody would come in until
the clock has caught up.

KEYS: the limit's state. ARGV: milliseconds per request, milliseconds of burst, requests.
"""


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """A decision made earlier.

    Attributes:
        claim: The decision.
        written: True if the broker has acknowledged it in the log.
    """

    claim: Claim
    written: bool


@dataclass(frozen=True, slots=True)
class SeenState:
    """What Valkey knows about one transaction.

    Attributes:
        customers: CUSTOMER records, 0 or 1.
        terminals: TERMINAL records, 0 or 1.
        pending: What was accepted before it and is not in the record; None where there is a stored
            decision, and where too many wait.
        stored: The decision made earlier under this transaction id, if any.
    """

    customers: npt.NDArray[Any]
    terminals: npt.NDArray[Any]
    pending: Pending | None
    stored: StoredClaim | None


def _key(prefix: bytes, key: npt.NDArray[np.uint64]) -> bytes:
    return prefix + key.astype(">u8").tobytes()


def _decision_key(batch: TransactionBatch) -> bytes:
    return _key(b"ff:d:", batch.transaction_key)


def _pending_key(batch: TransactionBatch) -> bytes:
    return _key(b"ff:p:", batch.customer_key)


def _stored(value: bytes | None) -> StoredClaim | None:
    if value is None:
        return None
    try:
        return StoredClaim(_claims.decode(value[1:]), value[:1] == _WRITTEN)
    except msgspec.DecodeError as error:
        raise StateStoreError(
            "A stored decision (ff:d:*) in Valkey cannot be read; another release wrote it. Use "
            "another Valkey database, or wait a day: stored decisions expire."
        ) from error


class AsyncStateStore:
    """Accepts transactions, stores decisions. All calls raise StateStoreError.

    Args:
        url: See `ValkeyLink`; nothing is connected before the first call.
    """

    def __init__(self, url: str) -> None:
        self._link = ValkeyLink(url)

    async def admit(self, batch: TransactionBatch, timeout_ms: float) -> SeenState:
        """Accept the one transaction of `batch` and return what its decision needs.

        From now on it counts for every later request of its customer, wherever that is answered.
        A transaction that was accepted before keeps its place.
        """
        own_key = _key(b"", batch.transaction_key)
        keys = [
            *encode_keys("customer", batch.customer_key),
            *encode_keys("terminal", batch.terminal_key),
            _decision_key(batch),
            _pending_key(batch),
        ]
        arguments: Command = (own_key, entry_of(batch), MAX_PENDING, PENDING_TTL_S)
        found = await self._link.run("accept a transaction", _ADMIT, keys, arguments, timeout_ms)
        customer, terminal = (found[2], found[3]) if len(found) > 2 else (None, None)
        customers = decode_records("customer", [customer])
        pending = None
        if len(found) > 2:
            pending = Pending.of(found[4], own_key, customers, int(found[1]))
        terminals = decode_records("terminal", [terminal])
        return SeenState(customers, terminals, pending, _stored(found[0]))

    async def forget(self, batch: TransactionBatch, timeout_ms: float) -> None:
        """Take back an acceptance: the transaction will never be written."""
        command: Command = ("HDEL", _pending_key(batch), _key(b"", batch.transaction_key))
        await self._call("forget a transaction", [command], timeout_ms)

    async def read_claim(
        self, transaction_key: npt.NDArray[np.uint64], timeout_ms: float
    ) -> StoredClaim | None:
        """Return the stored decision of a transaction (uint64 [1])."""
        command: Command = ("GET", _key(b"ff:d:", transaction_key))
        (found,) = await self._call("answer a read", [command], timeout_ms)
        return _stored(found)

    async def claim(
        self, batch: TransactionBatch, claim: Claim, timeout_ms: float
    ) -> StoredClaim | None:
        """Store a decision unless there is one; return the one that was there first."""
        value = _CLAIMED + msgspec.msgpack.encode(claim)
        command: Command = (
            *("SET", _decision_key(batch), value),
            *("EX", DECISION_TTL_S, "NX", "GET"),
        )
        (found,) = await self._call("store a decision", [command], timeout_ms)
        return _stored(found)

    async def mark_written(
        self,
        batch: TransactionBatch,
        claim: Claim,
        pending: Pending | None,
        position: tuple[int, int],
        timeout_ms: float,
    ) -> StoredClaim | None:
        """Store that the log holds the decision; a repeat is then answered without a write.

        Also where `claim` has failed before: what the log has first is the decision from now on.
        Returns the one that it had before this one, if any; that stays.

        Args:
            batch: The transaction.
            claim: Its decision.
            pending: What `admit` returned, if this request accepted it.
            position: Partition and offset in the log.
            timeout_ms: Limit.
        """
        value = _WRITTEN + msgspec.msgpack.encode(claim)
        arguments: Command = (
            *(value, DECISION_TTL_S, _key(b"", batch.transaction_key), log_place(*position)),
            *(() if pending is None else pending.included),
        )
        keys = [_decision_key(batch), _pending_key(batch)]
        first = await self._link.run("store a decision", _MARK, keys, arguments, timeout_ms)
        return _stored(first)

    async def wait_ms(
        self, name: str, per_s: float, burst: float, requests: int, timeout_ms: float
    ) -> int:
        """Count requests under a rate limit; return 0, or the milliseconds until one is free.

        Args:
            name: Whose limit.
            per_s: Requests per second.
            burst: Requests that may come at once.
            requests: How many to count.
            timeout_ms: Limit of this call.
        """
        arguments: Command = (f"{1000 / per_s:.3f}", f"{1000 * burst / per_s:.3f}", requests)
        key = b"ff:q:" + name.encode()
        found = await self._link.run("count a request", _LIMIT, [key], arguments, timeout_ms)
        return int(found)

    async def ping(self, timeout_ms: float) -> None:
        """Raise StateStoreError unless the server answers."""
        await self._call("answer a ping", [("PING",)], timeout_ms)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def _call(self, what: str, commands: list[Command], timeout_ms: float) -> list[Any]:
        replies = await self._link.call(what, commands, timeout_ms)
        require(replies, what)
        return replies
