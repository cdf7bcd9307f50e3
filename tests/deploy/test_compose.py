"""The Compose file and the image's recipe, as far as they can be examined without Docker."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.health_cli import URLS
from flagger.cli import COMMANDS
from flagger.settings import ENV_PREFIX, load_settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
OURS = ("streamer", "gateway", "tools", "smoke")
PINNED = r"[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}"
BY_TAG = ("nvcr.io/nvidia/tritonserver", "docker.io/valkey/valkey")
"""Of these we know no digest that two independent sources agree on; see docs/deploy.md."""
DESK = ("desk-migrate", "desk-consumer", "desk", "alerts", "labels-watch")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return loaded


def arguments_of(service: dict[str, Any]) -> list[str]:
    command = service.get("command", [])
    return [str(part) for part in command]


@pytest.mark.parametrize("name", OURS)
def test_every_setting_is_one(
    name: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("valkey://:x@valkey:6379/0\n")
    for variable in [v for v in os.environ if v.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(variable)
    for variable, value in compose["services"][name]["environment"].items():
        shown = str(secret) if value.startswith("/run/secrets/") else value
        monkeypatch.setenv(variable, shown)
    settings = load_settings()
    assert settings.kafka_bootstrap_servers == "kafka:9092"
    assert settings.triton_url == "triton:8001"
    assert settings.valkey_url == "valkey://:x@valkey:6379/0"


@pytest.mark.parametrize("name", DESK)
def test_every_setting_of_the_desk_is_one(
    name: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("postgresql+psycopg://desk:x@postgres/desk\n")
    for variable in [v for v in os.environ if v.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(variable)
    for variable, value in compose["services"][name]["environment"].items():
        is_secret = variable.endswith("_FILE") and value.startswith("/run/secrets/")
        monkeypatch.setenv(variable, str(secret) if is_secret else value)
    settings = load_settings()
    assert settings.kafka_bootstrap_servers == "kafka:9092"
    if name in ("alerts", "labels-watch"):  # Kafka is all they need
        assert (settings.triton_url, settings.valkey_url) == (None, None)
        secrets = ["alerts_rules"] if name == "alerts" else []
        assert compose["services"][name].get("secrets", []) == secrets
    else:
        url = settings.case_store_url.get_secret_value()
        assert url == "postgresql+psycopg://desk:x@postgres/desk"
        reads_payments = name != "desk-migrate"  # those around a case
        assert (settings.valkey_url is not None) == reads_payments
        assert ("valkey_url" in compose["services"][name]["secrets"]) == reads_payments
    assert compose["services"][name]["command"][0] in COMMANDS


def test_grafana_reads_the_cases_as_the_provisioned_source_says(compose: dict[str, Any]) -> None:
    (ours,) = yaml.safe_load((FOLDER / "grafana-cases.yml").read_text())["datasources"]
    shipped = ROOT / "grafana" / "provisioning" / "datasources" / "cases.yml"
    (theirs,) = yaml.safe_load(shipped.read_text())["datasources"]
    assert (ours["type"], ours["uid"]) == (theirs["type"], theirs["uid"])
    assert ours["url"] == "postgres:5432"
    grants = (FOLDER / "grant-reader.sh").read_text()
    assert f"GRANT SELECT ON cases TO {ours['user']};" in grants
    assert "cases_reader_password" in compose["services"]["grafana"]["secrets"]
    mounts = compose["services"]["grafana"]["volumes"]
    assert "./grafana-cases.yml:/etc/grafana/provisioning/datasources/cases.yml:ro" in mounts


@pytest.mark.parametrize("name", [*OURS, *DESK])
def test_our_containers_may_do_little(name: str, compose: dict[str, Any]) -> None:
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "kernels:/var/cache/flagger" in service["volumes"]
    assert not {"privileged", "network_mode", "pid"} & service.keys()


def test_commands_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert arguments_of(services["gateway"])[0] in COMMANDS
    assert arguments_of(services["smoke"])[0] in COMMANDS
    (shell,) = arguments_of(services["streamer"])
    found = re.search(r"exec flagger (\w+)", shell)
    assert found
    assert found[1] in COMMANDS
    for name in ("streamer", "gateway", "alerts", "desk-consumer", "labels-watch"):
        asks = ["CMD", "flagger", "health", name]
        assert services[name]["healthcheck"]["test"] == asks
        assert name in URLS


def test_what_is_referred_to_is_there(compose: dict[str, Any]) -> None:
    named = {"volumes": set(compose["volumes"]), "secrets": set(compose["secrets"])}
    for name, service in compose["services"].items():
        assert set(service.get("networks", [])) <= set(compose["networks"]), name
        assert set(service.get("secrets", [])) <= named["secrets"], name
        assert set(service.get("depends_on", [])) <= set(compose["services"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), f"{name} mounts {source}, which is not there"
            else:
                assert source in named["volumes"], name


def test_what_ends_is_waited_for(compose: dict[str, Any]) -> None:
    """`compose up --wait` fails on a container that ended, unless somebody was to wait for it."""
    services = compose["services"].values()
    waited_for = {
        name
        for service in services
        for name, how in dict(service.get("depends_on") or {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    ends = {
        name
        for name, service in compose["services"].items()
        if service["restart"] == "no" and "profiles" not in service
    }
    assert ends == waited_for == {"desk-migrate", "desk-reader"}


def test_only_this_machine_reaches_the_ports(compose: dict[str, Any]) -> None:
    ports = [p for s in compose["services"].values() for p in s.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert compose["networks"]["back"] == {"internal": True}
    assert "ports" not in compose["services"]["valkey"]


def test_one_triton_at_a_time_on_cpu_by_default(compose: dict[str, Any]) -> None:
    cpu, gpu = compose["services"]["triton"], compose["services"]["triton-gpu"]
    assert (cpu["profiles"], gpu["profiles"]) == (["cpu"], ["gpu"])
    assert "COMPOSE_PROFILES=cpu" in (FOLDER / ".env").read_text().splitlines()
    assert set(gpu["command"]) - set(cpu["command"]) == {"--model-config-name=gpu"}
    assert "--model-control-mode=explicit" in cpu["command"]
    loaded = {a.split("=")[1] for a in cpu["command"] if a.startswith("--load-model=")}
    assert loaded == {c.parent.name for c in (ROOT / "model_repository").glob("*/config.pbtxt")}
    assert cpu["networks"]["back"]["aliases"] == gpu["networks"]["back"]["aliases"] == ["triton"]
    for name in ("streamer", "gateway"):
        waits = compose["services"][name]["depends_on"]
        assert waits["triton"]["required"] is waits["triton-gpu"]["required"] is False


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    images = {service["image"] for service in compose["services"].values()}
    ours = {image for image in images if image.endswith(":local}")}
    assert len(ours) == 1
    for image in images - ours:
        if any(name in image for name in BY_TAG):
            assert re.search(r":[\w.-]*\d[\w.-]*\}?$", image), image
        else:
            assert re.fullmatch(PINNED, image), image


def test_prometheus_calls_jobs_as_the_rules_do(compose: dict[str, Any]) -> None:
    ours = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    theirs = yaml.safe_load((ROOT / "grafana" / "prometheus" / "prometheus.yml").read_text())
    jobs = [{s["job_name"] for s in config["scrape_configs"]} for config in (ours, theirs)]
    assert jobs[0] == jobs[1]
    mounts = compose["services"]["prometheus"]["volumes"]
    assert "../../grafana/prometheus/rules:/etc/prometheus/rules:ro" in mounts
    boards = yaml.safe_load(
        (ROOT / "grafana" / "provisioning" / "dashboards" / "fraud-flagger.yml").read_text()
    )
    path = boards["providers"][0]["options"]["path"]
    assert f"../../grafana/dashboards:{path}:ro" in compose["services"]["grafana"]["volumes"]


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    def make() -> dict[str, str]:
        subprocess.run(
            [str(FOLDER / "compose.sh"), "secrets"],
            check=True,
            env={**os.environ, "FRAUD_FLAGGER_SECRETS": str(folder)},
        )
        return {path.name: path.read_text() for path in folder.iterdir()}

    made = make()
    content = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert {f"secrets/{name}" for name in made} == {s["file"] for s in content["secrets"].values()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    password = made["valkey_conf"].split()[1]
    assert len(password) == 64
    assert made["valkey_url"].strip() == f"valkey://:{password}@valkey:6379/0"
    assert made["grafana_admin_password"] != password
    assert make() == made


def test_secrets_are_not_committed() -> None:
    assert "secrets/" in (FOLDER / ".gitignore").read_text().splitlines()
