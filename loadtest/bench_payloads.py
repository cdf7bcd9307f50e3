"""How fast one core reads transactions in each format: `python -m loadtest.bench_payloads`.

Starts a real schema registry; no Kafka, no model. What is measured is the streamer's way from a
message's bytes to columns; the registry is asked once per schema.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Literal

import click
import msgspec

from deploy.local.registry import start_registry
from flagger.settings import Settings
from flagger.wire.decode import decode_transactions
from streamer.payload_writer import PayloadWriter
from streamer.payloads import PayloadReader

__all__ = ["messages_per_s"]

FORMATS: tuple[Literal["json", "avro", "protobuf"], ...] = ("json", "avro", "protobuf")
N = 50_000
REPEATS = 5
_START_MS = 1_769_860_800_000
_NOW_MS = _START_MS + 86_400_000


def _messages() -> list[bytes]:
    return [
        msgspec.json.encode(
            {
                "transaction_id": f"7f1c9d2e-0a3b-4c5d-{i:012d}",
                "event_time": _START_MS + i,
                "customer_id": f"tok_c_{i % 5_000:08d}",
                "terminal_id": f"tok_t_{i % 900:08d}",
                "amount": 12.5 + i % 100,
                "currency": "EUR",
                "merchant_category": "5732",
                "channel": "pos",
                "country": "DE",
            }
        )
        for i in range(N)
    ]


def messages_per_s(registry_url: str) -> dict[str, tuple[float, int]]:
    """Return format -> (median of messages read per second, bytes of one message)."""
    found: dict[str, tuple[float, int]] = {}
    messages = _messages()
    decode_transactions(messages[:100], _NOW_MS)  # compiles
    for name in FORMATS:
        settings = Settings(
            schema_registry_url=registry_url, payload_format=name, transactions_topic=f"b-{name}"
        )
        with closing(PayloadWriter(settings)) as writer:
            values = list(writer.write(messages))
        reader = PayloadReader.of(settings)
        assert reader is not None  # noqa: S101 - the settings name a registry
        rates = []
        with closing(reader):
            for _ in range(REPEATS):
                start_s = time.perf_counter()
                as_json, refused = reader.to_json(values)
                rows = len(decode_transactions(as_json, _NOW_MS))
                rates.append(N / (time.perf_counter() - start_s))
                if refused or rows != N:
                    raise click.ClickException(f"{name}: {N - rows} messages were not read")
        found[name] = (statistics.median(rates), len(values[0]))
    return found


@click.command()
def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        server, url = start_registry(Path(folder))
        try:
            for name, (rate, size) in messages_per_s(url).items():
                click.echo(f"{name:10} {rate:10,.0f} messages/s on one core, {size} bytes each")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
