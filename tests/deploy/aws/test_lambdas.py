"""The Lambda functions, called with events of AWS's shapes, on DynamoDB and SNS by moto."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.aws import lambdas
from deploy.aws.lambdas import announce_flags, store_decisions
from flagger.alert import Alert
from flagger.decision_table import DecisionTable, item_of
from flagger.errors import ConfigurationError, DecisionStoreError

PLANTED = "c-planted-4111111111111111"


def kafka_event(shapes: Path, values: list[bytes], topic: str = "decisions") -> dict[str, Any]:
    """Return AWS's example event with our messages in place of its one."""
    event: dict[str, Any] = json.loads((shapes / "msk.json").read_text())
    (example,) = event["records"].pop("mytopic-0")
    for offset, value in enumerate(values):
        partition = offset % 2
        event["records"].setdefault(f"{topic}-{partition}", []).append(
            example
            | {
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "value": base64.b64encode(value).decode(),
            }
        )
    return event


def stream_event(shapes: Path, alerts: list[Alert]) -> dict[str, Any]:
    """Return AWS's example event with our items in place of its own."""
    event: dict[str, Any] = json.loads((shapes / "dynamodb.json").read_text())
    example = event["Records"][0]
    event["Records"] = [
        example
        | {
            "dynamodb": example["dynamodb"]
            | {"NewImage": item_of(alert, 4_000_000_000), "SequenceNumber": str(100 + i)}
        }
        for i, alert in enumerate(alerts)
    ]
    return event


def test_decisions_of_a_kafka_event_are_stored(
    table_name: str, shapes: Path, make_alert: Callable[..., Alert]
) -> None:
    alerts = [make_alert(f"t-{i}") for i in range(40)]
    event = kafka_event(shapes, [msgspec.json.encode(alert) for alert in alerts])
    assert store_decisions(event, None) == {"batchItemFailures": []}
    table = DecisionTable(table_name)
    assert [table.find(alert.transaction_id) for alert in alerts] == alerts
    table.close()


def test_the_same_event_again_changes_nothing(
    table_name: str,
    shapes: Path,
    make_alert: Callable[..., Alert],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    event = kafka_event(shapes, [msgspec.json.encode(make_alert(f"t-{i}")) for i in range(4)])
    store_decisions(event, None)
    assert "stored 4, repeated 0" in caplog.text
    caplog.clear()
    store_decisions(event, None)
    assert "stored 0, repeated 4" in caplog.text


def test_items_expire_after_the_retention(
    table_name: str,
    shapes: Path,
    make_alert: Callable[..., Alert],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import boto3

    monkeypatch.setenv("RETENTION_DAYS", "10")
    monkeypatch.setattr("deploy.aws.lambdas.time.time", lambda: 1_000_000.0)
    store_decisions(kafka_event(shapes, [msgspec.json.encode(make_alert("t-1"))]), None)
    client = boto3.client("dynamodb")
    item = client.get_item(TableName=table_name, Key={"transaction_id": {"S": "t-1"}})["Item"]
    client.close()
    assert item["expires_at"] == {"N": str(1_000_000 + 10 * 86_400)}


def test_a_message_that_is_no_decision_holds_nothing_up(
    table_name: str,
    shapes: Path,
    make_alert: Callable[..., Alert],
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = msgspec.json.encode(make_alert("t-good"))
    bad = [b"Hello, this is a test.", b"", b'{"transaction_id": 7}', b'{"customer_id":"c-secret"}']
    answer = store_decisions(kafka_event(shapes, [*bad, good]), None)
    assert answer == {"batchItemFailures": []}
    assert caplog.text.count("passed over") == len(bad)
    assert "decisions-0@2" in caplog.text
    assert "c-secret" not in caplog.text
    assert PLANTED not in caplog.text
    table = DecisionTable(table_name)
    assert table.find("t-good") is not None
    table.close()


def test_only_what_was_not_stored_is_asked_for_again(
    table_name: str,
    shapes: Path,
    make_alert: Callable[..., Alert],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    event = kafka_event(shapes, [msgspec.json.encode(make_alert(f"t-{i}")) for i in range(6)])
    real = DecisionTable.put

    def throttled(table: DecisionTable, decision: Alert, expires_at_s: int) -> bool:
        if decision.transaction_id in ("t-2", "t-5"):
            raise DecisionStoreError("The DynamoDB table did not take a write: Throttling.")
        return real(table, decision, expires_at_s)

    monkeypatch.setattr(DecisionTable, "put", throttled)
    assert store_decisions(event, None) == {
        "batchItemFailures": [
            {"itemIdentifier": {"partition": "decisions-0", "offset": 2}},
            {"itemIdentifier": {"partition": "decisions-1", "offset": 5}},
        ]
    }
    assert caplog.text.count("Throttling") == 1  # the same cause is said once
    monkeypatch.undo()
    monkeypatch.setenv("DECISION_TABLE", table_name)


def test_a_table_that_is_not_there_fails_the_whole_batch(
    aws: str, shapes: Path, make_alert: Callable[..., Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECISION_TABLE", "no-such-table")
    lambdas._table.cache_clear()
    event = kafka_event(shapes, [msgspec.json.encode(make_alert(f"t-{i}")) for i in range(3)])
    assert len(store_decisions(event, None)["batchItemFailures"]) == 3
    lambdas._table.cache_clear()


def test_a_function_without_its_settings_says_which(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DECISION_TABLE", raising=False)
    monkeypatch.delenv("FLAGS_TOPIC_ARN", raising=False)
    with pytest.raises(ConfigurationError, match="DECISION_TABLE"):
        store_decisions(kafka_event(shapes, []), None)
    with pytest.raises(ConfigurationError, match="FLAGS_TOPIC_ARN"):
        announce_flags(stream_event(shapes, []), None)


class Inbox:
    """What an SNS topic delivered."""

    def __init__(self, arn: str, url: str) -> None:
        self.arn = arn
        self._url = url

    def take(self) -> list[dict[str, Any]]:
        """Return the SNS messages so far and forget them."""
        import boto3

        client = boto3.client("sqs")
        found: list[dict[str, Any]] = []
        while True:
            answer = client.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10)
            if not answer.get("Messages"):
                client.close()
                return found
            for message in answer["Messages"]:
                found.append(json.loads(message["Body"]))
                client.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])


@pytest.fixture
def inbox(aws: str, table_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    import boto3

    sns, sqs = boto3.client("sns"), boto3.client("sqs")
    arn = sns.create_topic(Name=f"flags-{table_name}")["TopicArn"]
    url = sqs.create_queue(QueueName=f"flags-{table_name}")["QueueUrl"]
    queue = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue["Attributes"]["QueueArn"])
    monkeypatch.setenv("FLAGS_TOPIC_ARN", arn)
    yield Inbox(arn, url)
    sns.close()
    sqs.close()


def test_flags_are_told_and_approvals_are_not(
    inbox: Inbox, shapes: Path, make_alert: Callable[..., Alert]
) -> None:
    alerts = [
        make_alert("t-review"),
        make_alert("t-approve", decision="approve"),
        make_alert("t-decline", decision="decline", currency=None),
    ]
    assert announce_flags(stream_event(shapes, alerts), None) == {"batchItemFailures": []}
    told = inbox.take()
    assert {json.loads(m["Message"])["transaction_id"] for m in told} == {"t-review", "t-decline"}
    assert {m["Subject"] for m in told} == {
        "Payment of 129.95: review",
        "Payment of 129.95: decline",
    }
    assert all(PLANTED not in json.dumps(m) for m in told)


def test_only_new_items_are_news(inbox: Inbox, shapes: Path) -> None:
    # AWS's own example: an item that is none of ours, and a change of it.
    event = json.loads((shapes / "dynamodb.json").read_text())
    assert announce_flags(event, None) == {"batchItemFailures": []}
    assert inbox.take() == []


def test_an_attack_sends_one_digest_per_batch(
    inbox: Inbox, shapes: Path, make_alert: Callable[..., Alert]
) -> None:
    alerts = [
        make_alert(f"t-{i}", amount=float(i), decision="decline" if i % 2 else "review")
        for i in range(100)
    ]
    announce_flags(stream_event(shapes, alerts), None)
    (told,) = inbox.take()
    digest = json.loads(told["Message"])
    assert told["Subject"] == "100 flagged payments"
    assert (digest["flagged"], digest["declined"], digest["amount"]) == (100, 50, 4950.0)
    assert [flag["amount"] for flag in digest["largest"]] == [99.0, 98.0, 97.0, 96.0, 95.0]
    assert PLANTED not in told["Message"]


def test_what_sns_does_not_take_is_asked_for_again(
    inbox: Inbox,
    shapes: Path,
    make_alert: Callable[..., Alert],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alerts = [make_alert("t-1"), make_alert("t-ok", decision="approve"), make_alert("t-2")]
    monkeypatch.setenv("FLAGS_TOPIC_ARN", f"{inbox.arn}-absent")
    assert announce_flags(stream_event(shapes, alerts), None) == {
        "batchItemFailures": [{"itemIdentifier": "100"}, {"itemIdentifier": "102"}]
    }
    client = lambdas._sns()

    class PartlyBusy:
        """SNS that takes the first message of a batch only (moto cannot refuse one of several)."""

        @staticmethod
        def publish_batch(**request: Any) -> dict[str, Any]:
            first, *others = request["PublishBatchRequestEntries"]
            answer = client.publish_batch(
                TopicArn=request["TopicArn"], PublishBatchRequestEntries=[first]
            )
            failed = [{"Id": o["Id"], "Code": "Throttled", "SenderFault": False} for o in others]
            return {**answer, "Failed": failed}

    monkeypatch.setenv("FLAGS_TOPIC_ARN", inbox.arn)
    monkeypatch.setattr(lambdas, "_sns", lambda: PartlyBusy)
    assert announce_flags(stream_event(shapes, alerts), None) == {
        "batchItemFailures": [{"itemIdentifier": "102"}]
    }


def test_the_tables_own_stream_tells_each_transaction_once(
    table_name: str, inbox: Inbox, shapes: Path, make_alert: Callable[..., Alert]
) -> None:
    # From the message on Kafka to the message to people, with the stream's own records between.
    import boto3

    event = kafka_event(shapes, [msgspec.json.encode(make_alert(f"t-{i}")) for i in range(3)])
    store_decisions(event, None)
    store_decisions(event, None)
    client = boto3.client("dynamodb")
    arn = client.describe_table(TableName=table_name)["Table"]["LatestStreamArn"]
    client.close()
    streams = boto3.client("dynamodbstreams")
    (shard,) = streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
    iterator = streams.get_shard_iterator(
        StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    records = streams.get_records(ShardIterator=iterator)["Records"]
    streams.close()
    assert announce_flags({"Records": records}, None) == {"batchItemFailures": []}
    told = [json.loads(m["Message"])["transaction_id"] for m in inbox.take()]
    assert sorted(told) == ["t-0", "t-1", "t-2"]
