"""The archive for Lambda holds all that the functions need, and little else."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from deploy.aws.package import build_package
from flagger.alert import Alert

MACHINE = {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]
LARGEST_BYTES = 5_000_000
"""Lambda takes 50 MB; a small archive starts faster."""

RUN = """
import base64, json, sys
sys.path.insert(0, sys.argv[1])
sys.path.append(sys.argv[2])
import msgspec
assert msgspec.__file__.startswith(sys.argv[1]), msgspec.__file__
import deploy.aws.lambdas as functions
import flagger.errors
assert functions.__file__.startswith(sys.argv[1])
assert flagger.errors.__file__.startswith(sys.argv[1])
heavy = sorted({"numba", "numpy", "pydantic", "confluent_kafka", "click"} & set(sys.modules))
assert not heavy, heavy
event = json.load(sys.stdin)
print(json.dumps(functions.store_decisions(event, None)))
"""


def test_the_archive_runs_without_this_repository(
    tmp_path: Path, table_name: str, shapes: Path, make_alert: Callable[..., Alert]
) -> None:
    import base64

    import boto3

    from flagger.decision_table import DecisionTable

    ours = "{}.{}".format(*sys.version_info[:2])  # the deployed one is of Lambda's runtime
    build_package(tmp_path / "functions.zip", MACHINE, python=ours)
    assert (tmp_path / "functions.zip").stat().st_size < LARGEST_BYTES
    with zipfile.ZipFile(tmp_path / "functions.zip") as archive:
        archive.extractall(tmp_path / "task")
    event = json.loads((shapes / "msk.json").read_text())
    (record,) = event["records"]["mytopic-0"]
    record["value"] = base64.b64encode(msgspec.json.encode(make_alert("t-1"))).decode()
    # -S: without this environment's packages, but for boto3's folder, which comes last.
    boto3_folder = str(Path(boto3.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN, str(tmp_path / "task"), boto3_folder],
        cwd=tmp_path, input=json.dumps(event), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"batchItemFailures": []}
    table = DecisionTable(table_name)
    assert table.find("t-1") == make_alert("t-1")
    table.close()


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        build_package(tmp_path / name, "arm64")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
