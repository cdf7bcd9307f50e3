"""Readers: CSV and Parquet give the same batch; each bad cell is named; keys equal `key_of`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from flagger.errors import ConfigurationError, DataError
from flagger.features import CATEGORY_FIELDS
from flagger.features.hashing import key_of
from train.simulate import SimulationConfig, simulate
from train.sources import SCHEMA, ColumnMap, read_sorted, read_transactions, to_batch

GOOD: dict[str, Any] = {
    "transaction_id": "t1",
    "event_time": "2026-01-31T12:00:00Z",
    "customer_id": "c1",
    "terminal_id": "m1",
    "amount": 12.5,
    "channel": "pos",
    "is_fraud": False,
}
NOON_MS = 1_769_860_800_000


def rows_of(changes: dict[str, Any], place: int = 2, n: int = 5) -> list[dict[str, Any]]:
    """Return good rows with one of them changed."""
    rows = [{**GOOD, "transaction_id": f"t{i + 1}"} for i in range(n)]
    rows[place] |= changes
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(rows[0])
    lines = [",".join("" if row[n] is None else str(row[n]) for n in names) for row in rows]
    path.write_text("\n".join([",".join(names), *lines]) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    n = max(len(v) for v in columns.values())
    base = {name: [value] * n for name, value in GOOD.items()}
    pq.write_table(pa.table({**base, **columns}), path)
    return path


def read(path: Path, columns: ColumnMap | None = None, chunk_rows: int = 65_536) -> pa.Table:
    return pa.Table.from_batches(
        read_transactions(path, columns, chunk_rows=chunk_rows), schema=SCHEMA
    )


@pytest.mark.parametrize(
    ("changes", "column", "value", "text"),
    [
        ({"transaction_id": ""}, "transaction_id", None, "id is missing"),
        ({"customer_id": "x" * 129}, "customer_id", "x" * 129, "longer than 128 bytes"),
        ({"event_time": "yesterday"}, "event_time", "yesterday", "not a time with a zone"),
        ({"event_time": "2026-01-31T12:00:00"}, "event_time", "2026-01-31T12:00:00", "zone"),
        ({"event_time": "1700000000"}, "event_time", "1700000000", "unit"),
        ({"event_time": ""}, "event_time", None, "time is missing"),
        ({"amount": "12,5x"}, "amount", None, "expected"),
        ({"amount": "twelve"}, "amount", "twelve", "not a number"),
        ({"amount": "-0.01"}, "amount", "-0.01", "out of range"),
        ({"amount": "nan"}, "amount", "nan", "out of range"),
        ({"amount": "1e10"}, "amount", "1e10", "out of range"),
        ({"amount": ""}, "amount", None, "missing"),
        ({"channel": "x" * 65}, "channel", "x" * 65, "longer than 64 bytes"),
        ({"is_fraud": "maybe"}, "is_fraud", "maybe", "not true or false"),
    ],
)
def test_bad_cell_is_named(
    tmp_path: Path, changes: dict[str, Any], column: str, value: object, text: str
) -> None:
    path = write_csv(tmp_path / "data.csv", rows_of(changes))
    with pytest.raises(DataError, match=r"data\.csv") as caught:
        read(path)
    if "," in str(changes.get("amount", "")):  # one cell too many: arrow names the row in its text
        assert "Expected 7 columns, got 8" in str(caught.value)
        return
    assert (caught.value.row, caught.value.column, caught.value.value) == (3, column, value)
    assert text in str(caught.value)
    assert caught.value.exit_code == 4


def test_row_number_counts_across_chunks(tmp_path: Path) -> None:
    rows = rows_of({"amount": -1}, place=7, n=10)
    path = write_csv(tmp_path / "data.csv", rows)
    with pytest.raises(DataError, match="row 8"):
        read(path, chunk_rows=3)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"data\.parquet, row 8, column 'amount', value -1"):
        read(tmp_path / "data.parquet", chunk_rows=3)


def test_missing_column_lists_what_is_there(tmp_path: Path) -> None:
    rows = [{"TX_ID": "a", "event_time": 1, "customer_id": "c"}]
    path = write_csv(tmp_path / "data.csv", rows)
    with pytest.raises(DataError, match=r"'transaction_id'.*TX_ID, event_time, customer_id.*map"):
        read(path)


def test_an_optional_column_that_the_map_names_must_exist(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "data.csv", rows_of({}))
    with pytest.raises(DataError, match="'MCC': the column is missing"):
        read(path, ColumnMap({"merchant_category": "MCC"}))


@pytest.mark.parametrize("name", ["gone.parquet", "gone.csv", "data.txt", "broken.parquet"])
def test_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read(tmp_path / name)


def test_empty_file_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(SCHEMA.empty_table(), path)
    assert read(path).num_rows == 0
    with pytest.raises(DataError, match="no rows"):
        read_sorted(path)


def test_csv_and_parquet_give_the_same_batches(tmp_path: Path) -> None:
    config = SimulationConfig(customers=40, terminals=20, days=3)
    table = pa.Table.from_batches(simulate(config))
    pq.write_table(table, tmp_path / "data.parquet")
    pa.csv.write_csv(table, tmp_path / "data.csv")
    from_parquet = read(tmp_path / "data.parquet")
    from_csv = read(tmp_path / "data.csv", chunk_rows=7)
    assert from_parquet.equals(table)
    assert from_csv.combine_chunks().equals(table.combine_chunks())


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON_MS]),
        pa.array([NOON_MS], pa.timestamp("ms", "UTC")),
        pa.array([NOON_MS * 1000 + 999], pa.timestamp("us", "Europe/Paris")),
        pa.array([datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2)))]),
        pa.array(["2026-01-31T12:00:00Z"]),
        pa.array(["2026-01-31T13:00:00.000999+01:00"], pa.large_string()),
        pa.array([str(NOON_MS)]),
    ],
)
def test_event_times(tmp_path: Path, times: pa.Array) -> None:
    table = read(write_parquet(tmp_path / "data.parquet", {"event_time": times}))
    assert table["event_time"].to_pylist() == [datetime(2026, 1, 31, 12, tzinfo=UTC)]


def test_naive_times_need_a_zone(tmp_path: Path) -> None:
    naive = pa.array([datetime(2026, 1, 31, 13)], pa.timestamp("us"))  # noqa: DTZ001
    path = write_parquet(tmp_path / "data.parquet", {"event_time": naive})
    with pytest.raises(DataError, match=r"row 1, column 'event_time'.*names no zone"):
        read(path)
    table = read(path, ColumnMap(zone="Europe/Paris"))
    assert table["event_time"].to_pylist() == [datetime(2026, 1, 31, 12, tzinfo=UTC)]


@pytest.mark.parametrize(
    "written",
    [
        "2026-03-29 04:30:00",
        "2026-03-29T04:30",
        "2026-03-29T02:30:00Z",
        "2026-03-29T06:30:00.000+04:00",
        "2026-03-28T21:30:00-0500",
        "1774751400000",
    ],
)
def test_the_zone_is_for_times_that_name_none(tmp_path: Path, written: str) -> None:
    text = write_csv(tmp_path / "data.csv", rows_of({"event_time": written}))
    table = read(text, ColumnMap(zone="Europe/Paris"))  # the other rows name one
    assert table["event_time"][2].as_py() == datetime(2026, 3, 29, 2, 30, tzinfo=UTC)
    assert table["event_time"].null_count == 0


@pytest.mark.parametrize("written", ["2026-03-29 02:30:00", "2026-10-25 02:30:00", "tomorrow"])
def test_what_is_no_time_in_the_zone_is_named(tmp_path: Path, written: str) -> None:
    text = write_csv(tmp_path / "data.csv", rows_of({"event_time": written}))
    with pytest.raises(DataError, match=rf"row 3, .*{written}.*none or two in Europe/Paris"):
        read(text, ColumnMap(zone="Europe/Paris"))


def test_column_map_from_toml(tmp_path: Path) -> None:
    toml = tmp_path / "map.toml"
    toml.write_text(
        '[columns]\ntransaction_id = "TX_ID"\nis_fraud = "TX_FRAUD"\n[event_time]\nunit = "s"\n',
        encoding="utf-8",
    )
    path = tmp_path / "data.parquet"
    pq.write_table(
        pa.table(
            {
                "TX_ID": [17],
                "event_time": [NOON_MS // 1000],
                "customer_id": [3],
                "terminal_id": pa.array(["m"], pa.large_string()).dictionary_encode(),
                "amount": pa.array([5], pa.int32()),
                "merchant_category": [5411],
                "TX_FRAUD": [1],
            }
        ),
        path,
    )
    row = read(path, ColumnMap.load(toml)).to_pylist()[0]
    assert row == {
        "transaction_id": "17",
        "event_time": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "customer_id": "3",
        "terminal_id": "m",
        "amount": 5.0,
        "currency": None,
        "merchant_category": "5411",
        "channel": None,
        "country": None,
        "is_fraud": True,
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[columns", "Cannot read"),
        ('[columns]\ncard = "X"', "names the fields"),
        ("[colums]\n", "tables"),
        ('[event_time]\nzone = "Mars/Olympus"', "no time zone"),
        ('[event_time]\nunit = "h"', "unit"),
        ('[event_time]\nformat = "h"', "may have zone and unit"),
    ],
)
def test_bad_column_map(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "map.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=problem):
        ColumnMap.load(path)


def test_labels_other_than_zero_and_one_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data.parquet", {"is_fraud": [0, 1, None, 2]})
    with pytest.raises(DataError, match=r"row 4, column 'is_fraud', value 2"):
        read(path)


def test_sorted_keeps_the_order_of_equal_times(tmp_path: Path) -> None:
    times = [NOON_MS + 5, NOON_MS, NOON_MS + 5, NOON_MS]
    path = write_parquet(
        tmp_path / "data.parquet", {"transaction_id": list("abcd"), "event_time": times}
    )
    assert read_sorted(path)["transaction_id"].to_pylist() == list("bdac")


def test_keys_are_those_of_the_wire() -> None:
    rows: list[dict[str, Any]] = [
        {
            "transaction_id": f"t-{i}",
            "event_time": NOON_MS + i,
            "customer_id": "zoë" * (i + 1),
            "terminal_id": "m" * (30 * i + 1),
            "amount": i / 3,
            "currency": None if i % 2 else "EUR",
            "merchant_category": "" if i == 1 else f"{5000 + i}",
            "channel": None,
            "country": "GB",
            "is_fraud": None,
        }
        for i in range(6)
    ]
    whole = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    for start in (0, 2):
        batch = to_batch(whole.slice(start))
        kept = rows[start:]
        for field in ("transaction", "customer", "terminal"):
            expected = [key_of(row[f"{field}_id"]) for row in kept]
            assert getattr(batch, f"{field}_key").tolist() == expected
        assert batch.category_keys.tolist() == [
            [key_of(row[name]) if row[name] else 0 for name in CATEGORY_FIELDS] for row in kept
        ]
        assert batch.event_time_ms.tolist() == [row["event_time"] for row in kept]
        assert batch.amount.tolist() == [row["amount"] for row in kept]
        assert batch.category_keys.dtype == np.uint64
        assert batch.category_keys.flags.c_contiguous


def test_empty_batch_has_no_keys() -> None:
    assert len(to_batch(pa.RecordBatch.from_pylist([], schema=SCHEMA))) == 0
