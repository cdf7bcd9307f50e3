"""Terraform's files against our code, without AWS and without the AWS provider.

What only the provider knows (does every argument exist?) is not tested here; see docs/aws.md.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hcl2
import pytest

from deploy.aws import lambdas
from deploy.aws.package import PYTHON
from deploy.aws.table import EXPIRY_ATTRIBUTE, table_layout
from flagger.settings import Settings

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "aws" / "terraform"
WITHOUT_RESOURCES = {
    "dynamodb:ListStreams",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
}
"""Actions that cannot be narrowed to a resource (AWS service authorization reference)."""


def plain(value: Any) -> Any:
    """Return what hcl2 read without the quotes and interpolation marks that it keeps."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items() if not str(k).startswith("__")}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, str):
        text = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
        whole = re.fullmatch(r"\$\{([^{}]*)\}", text)
        return whole.group(1) if whole else text
    return value


def blocks(kind: str) -> dict[str, Any]:
    """Return address -> body of all blocks of a kind, of all files."""
    found: dict[str, Any] = {}
    for path in sorted(FOLDER.glob("*.tf")):
        with path.open() as file:
            parsed = plain(hcl2.load(file))
        for block in parsed.get(kind, []):
            for first, inner in block.items():
                if kind in ("resource", "data"):
                    found |= {f"{first}.{name}": body for name, body in inner.items()}
                elif kind == "locals":
                    found[first] = inner
                else:
                    found[first] = inner
    return found


def test_every_reference_is_declared() -> None:
    text = "\n".join(re.sub(r"#.*", "", p.read_text()) for p in sorted(FOLDER.glob("*.tf")))
    resources, data = blocks("resource"), blocks("data")
    assert len(resources) > 20
    used = set(re.findall(r"(?<![\w.])(aws_\w+\.\w+)", text)) - set(
        re.findall(r"data\.(aws_\w+\.\w+)", text)
    )
    assert used <= resources.keys()
    assert set(re.findall(r"data\.(aws_\w+\.\w+)", text)) <= data.keys()
    declared = blocks("variable")
    assert set(re.findall(r"var\.(\w+)", text)) == declared.keys()
    assert set(re.findall(r"local\.(\w+)", text)) <= blocks("locals").keys()


def test_the_table_is_the_one_that_the_code_expects() -> None:
    body = blocks("resource")["aws_dynamodb_table.decisions"]
    layout = table_layout("any")
    index, in_code = body["global_secondary_index"][0], layout["GlobalSecondaryIndexes"][0]
    assert {(a["name"], a["type"]) for a in body["attribute"]} == {
        (a["AttributeName"], a["AttributeType"]) for a in layout["AttributeDefinitions"]
    }
    assert body["hash_key"] == layout["KeySchema"][0]["AttributeName"]
    assert index["name"] == in_code["IndexName"]
    assert [index["hash_key"], index["range_key"]] == [
        key["AttributeName"] for key in in_code["KeySchema"]
    ]
    assert index["projection_type"] == in_code["Projection"]["ProjectionType"]
    assert body["billing_mode"] == layout["BillingMode"]
    assert body["stream_view_type"] == layout["StreamSpecification"]["StreamViewType"]
    assert body["ttl"][0]["attribute_name"] == EXPIRY_ATTRIBUTE


@pytest.mark.parametrize("name", ["store_decisions", "announce_flags"])
def test_a_function_exists_and_gets_the_settings_that_it_reads(name: str) -> None:
    body = blocks("resource")[f"aws_lambda_function.{name}"]
    module, _, function = body["handler"].rpartition(".")
    handler = getattr(importlib.import_module(module), function)
    assert len(inspect.signature(handler).parameters) == 2
    assert body["runtime"] == f"python{PYTHON}"
    read = set(re.findall(r'"([A-Z]+_[A-Z_]+)"', inspect.getsource(handler)))
    assert set(body["environment"][0]["variables"]) == read


def test_batches_are_answered_in_part_and_given_up_some_day() -> None:
    found = blocks("resource")
    for name in ("decisions", "flags"):
        mapping = found[f"aws_lambda_event_source_mapping.{name}"]
        assert mapping["function_response_types"] == ["ReportBatchItemFailures"]
        assert 0 < mapping["maximum_retry_attempts"] < 100
        assert (
            "aws_sqs_queue.failed"
            in mapping["destination_config"][0]["on_failure"][0]["destination_arn"]
        )
    # Without pollers of its own a Kafka mapping knows none of this.
    assert "provisioned_poller_config" in found["aws_lambda_event_source_mapping.decisions"]


def test_the_stream_is_filtered_as_the_function_would() -> None:
    text = (FOLDER / "lambda.tf").read_text()
    decisions = re.search(r"decision = \{ S = (\[.*?\]) \}", text)
    assert decisions is not None
    assert tuple(json.loads(decisions.group(1))) == lambdas._FLAGGED


def test_rights_are_narrow() -> None:
    documents = blocks("data")
    policies = {n: b for n, b in documents.items() if not n.endswith("_assume")}
    assert len(policies) == 4
    for name, body in policies.items():
        for statement in body["statement"]:
            for action in statement["actions"]:
                assert "*" not in action, name
            if statement["resources"] == ["*"]:
                assert set(statement["actions"]) <= WITHOUT_RESOURCES, name


def test_our_pods_may_use_our_topics_and_nobody_elses() -> None:
    settings = Settings()
    topics = {getattr(settings, n) for n in Settings.model_fields if n.endswith("_topic")}
    text = (FOLDER / "iam.tf").read_text()
    listed = re.search(r"topics = \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r'"([\w.-]+)"', listed.group(1))) >= topics
    assert blocks("variable")["consumer_group"]["default"] == settings.consumer_group


PAGE = (ROOT / "docs" / "kafka-security.md").read_text()
ACTIONS = {
    ("topic", "Read"): "ReadData",
    ("topic", "Write"): "WriteData",
    ("topic", "Describe"): "DescribeTopic",
    ("group", "Read"): "AlterGroup",
    ("group", "Describe"): "DescribeGroup",
    ("transactional id", "Write"): "AlterTransactionalId",
    ("transactional id", "Describe"): "DescribeTransactionalId",
    ("cluster", "IdempotentWrite"): "WriteDataIdempotently",
}
"""What MSK calls Kafka's operations (Amazon MSK developer guide, "Semantics of IAM actions")."""


def documented_rights() -> set[tuple[str, str, str]]:
    """Return kind, name and operation of everything in the page's table of rights.

    Each program runs with these and no others in tests/kafka_security.
    """
    found, kind = set(), ""
    token = r"\b(topic|group|transactional id|cluster)s?\b|`([^`]+)`"
    for cell, operations in re.findall(r"^\| .+ \| (.+) \| (.+) \|$", PAGE, re.MULTILINE):
        for named, name in re.findall(token, cell):
            kind = named or kind
            if name or named == "cluster":
                for operation in re.findall(r"[A-Z]\w+", operations.partition(";")[0]):
                    found.add((kind, name, operation))
    return {right for right in found if right[:2] != ("", "")}


def may(kind: str, name: str, operation: str) -> bool:
    """Return True if a statement of our pods' policy allows it."""
    prefix = {
        "topic": "local.kafka_topic_arn_prefix",
        "group": "local.kafka_group_arn_prefix",
        "transactional id": "local.kafka_transaction_arn_prefix",
        "cluster": "local.kafka_arn",
    }[kind]
    for statement in blocks("data")["aws_iam_policy_document.pods"]["statement"]:
        if f"kafka-cluster:{ACTIONS[kind, operation]}" not in statement["actions"]:
            continue
        resources = statement["resources"]
        if kind == "topic" and "in local.topics" in resources:
            resources = [f"${{{prefix}}}{topic}" for topic in blocks("locals")["topics"]]
        for resource in (r for r in resources if prefix in r):
            pattern = resource.replace(f"${{{prefix}}}", "").removeprefix(prefix)
            pattern = pattern.replace("${var.consumer_group}", Settings().consumer_group)
            if fnmatch.fnmatchcase(name, pattern):
                return True
    return False


def test_our_pods_may_do_what_each_program_needs() -> None:
    rights = documented_rights()
    assert len(rights) > 25
    for kind, name, operation in sorted(rights):
        known = Settings().alerts_group if name == "FLAGGER_ALERTS_GROUP" else name
        assert may(kind, known, operation), (kind, name, operation)
    assert not may("group", "of-others", "Read")
    assert not may("topic", "of-others", "Read")


def test_every_group_of_the_code_is_in_the_table_of_rights() -> None:
    groups = {name for kind, name, _ in documented_rights() if kind == "group"}
    services = ("flagger", "streamer", "gateway", "review", "train", "deploy")
    code = "".join(p.read_text() for s in services for p in (ROOT / s).rglob("*.py"))
    named = set(re.findall(r'"group\.id": "([^"]+)"', code))
    assert len(named) > 4
    assert named <= groups


def test_the_charts_values_are_known_to_its_schema() -> None:
    schema = json.loads((ROOT / "deploy/helm/fraud-flagger/values.schema.json").read_text())
    text = (FOLDER / "outputs.tf").read_text()
    body = text[text.index("yamlencode({") :]
    for section, keys in re.findall(r"(\w+)\s+= \{([^{}]*)\}", body):
        known = schema["properties"][section]["properties"] if section != "settings" else None
        for key in re.findall(r"(\w+)\s+=", keys):
            assert key in (Settings.model_fields if known is None else known), f"{section}.{key}"


@pytest.mark.skipif(shutil.which("terraform") is None, reason="needs terraform")
def test_terraform_reads_and_formats_the_files() -> None:
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", str(FOLDER)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
