"""The renderings are of the chart as it is, and the schema of the values knows them all."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from tests.deploy.helm.conftest import CHART, NAMES, RENDERED


def test_the_renderings_are_of_this_chart() -> None:
    digest = hashlib.sha256()
    for path in sorted(str(p.relative_to(CHART)) for p in CHART.rglob("*") if p.is_file()):
        of_file = hashlib.sha256((CHART / path).read_bytes()).hexdigest()
        digest.update(f"{of_file}  ./{path}\n".encode())
    assert sorted(p.stem for p in RENDERED.iterdir()) == sorted(NAMES)
    for name in NAMES:
        first = (RENDERED / f"{name}.yaml").read_text().splitlines()[0]
        assert first.split()[-1] == digest.hexdigest(), "run deploy/helm/render.sh (needs helm)"


def test_the_schema_knows_each_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    free = {"settings", "resources", "nodeSelector", "labels", "monitoring", "annotations"}

    def compare(found: dict[str, Any], described: dict[str, Any], where: str) -> None:
        assert described["additionalProperties"] is False, where
        known = described["properties"].keys() - {"global"}
        assert found.keys() == known, where
        for key, value in found.items():
            if isinstance(value, dict) and key not in free:
                compare(value, described["properties"][key], f"{where}.{key}")

    compare(values, schema, "values")
    assert values["streamer"]["partitions"] >= values["streamer"]["replicas"]
