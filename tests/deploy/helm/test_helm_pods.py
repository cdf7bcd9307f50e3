"""What the chart's pods run with: their settings, commands, probes and rights."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest

from flagger.cli import cli
from flagger.settings import ENV_PREFIX, Settings, load_settings
from tests.deploy.helm.conftest import NAME, Rendering, environment_of, pod_of

PORTS = {
    "streamer": ("metrics", 9101),
    "gateway": ("http", 8080),
    "alerts": ("metrics", 9103),
    "desk": ("http", 8501),
    "desk-consumer": ("metrics", 9104),
    "labels-watch": ("metrics", 9105),
}


def assert_parses(arguments: list[str]) -> None:
    """Let the real command line read the arguments, without running the command."""
    group: click.Command = cli
    with click.Context(cli) as context:
        while isinstance(group, click.Group):
            name, *arguments = arguments
            found = group.get_command(context, name)
            assert found is not None, name
            group = found
        parsed = group.make_context(group.name, list(arguments), resilient_parsing=False)
    assert parsed.args == []


def test_every_setting_is_one(
    rendering: Rendering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a-secret-value")
    seen = 0
    for component, pod in rendering.ours():
        for variable in [v for v in os.environ if v.startswith(ENV_PREFIX)]:
            monkeypatch.delenv(variable)
        for entry in pod["containers"][0]["env"]:
            value = entry.get("value", "streamer-0")
            assert isinstance(value, str)
            is_secret = entry["name"].endswith(("URL_FILE", "PASSWORD_FILE"))
            monkeypatch.setenv(entry["name"], str(secret) if is_secret else value)
        settings = load_settings()
        if component.startswith("desk"):
            assert settings.case_store_url.get_secret_value() == "a-secret-value"
            if component != "desk-migrate":  # the payments around a case
                assert settings.valkey_url == "a-secret-value"
        elif component in ("alerts", "labels-watch"):  # ask neither the store nor a model
            assert not settings.valkey_url
        else:
            assert settings.valkey_url == "a-secret-value"
            assert str(settings.model_repository) == "/models"
        assert settings.kafka_bootstrap_servers or component == "desk-migrate"
        seen += 1
    assert seen == {"everything": 8, "aws": 6}.get(rendering.name, 3)


def test_compiled_kernels_can_be_kept(rendering: Rendering) -> None:
    """The root file system is read-only; without this folder each start compiles anew."""
    for component, pod in rendering.ours():
        mounts = {one["mountPath"]: one for one in pod["containers"][0]["volumeMounts"]}
        kernels = mounts["/var/cache/flagger"]
        assert not kernels.get("readOnly"), component
        assert {"name": kernels["name"], "emptyDir": {"sizeLimit": "256Mi"}} in pod["volumes"]
        if component != "smoke":
            (init,) = pod["initContainers"]
            # `cp -a` fails: it sets times and mode of a folder that root owns.
            assert init["command"] == ["cp", "-r", "/var/cache/flagger/.", "/kernels/"]
            assert init["volumeMounts"] == [{"name": kernels["name"], "mountPath": "/kernels"}]


def test_numbers_of_the_values_stay_whole(everything: Rendering) -> None:
    env = environment_of(pod_of(everything.find("StatefulSet", "streamer")))
    assert env["FLAGGER_MAX_CUSTOMERS_IN_MEMORY"] == "2000000"
    assert env["FLAGGER_KAFKA_PASSWORD_FILE"] == "/etc/flagger/kafka/password"


def test_pods_may_do_little(rendering: Rendering) -> None:
    for component, pod in rendering.pods():
        assert pod["automountServiceAccountToken"] is False, component
        # Else a service of the release called flagger would be an unknown FLAGGER_ setting.
        assert pod["enableServiceLinks"] is False, component
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert re.search(r":\S*\d|@sha256:[0-9a-f]{64}$", container["image"])
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_commands_and_probes(rendering: Rendering, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a-key")
    for component, pod in rendering.ours():
        container = pod["containers"][0]
        # A Secret's file is there in the pod alone.
        assert_parses([a.replace("/etc/flagger/smoke/key", str(key)) for a in container["args"]])
        if component in ("smoke", "desk-migrate"):
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {PORTS[component][0]: PORTS[component][1]}
        # The pages have no /readyz: they wait for nothing but the case store, at their start.
        ready = "/healthz" if component == "desk" else "/readyz"
        for probe, path in (("liveness", "/healthz"), ("readiness", ready)):
            assert container[f"{probe}Probe"]["httpGet"]["path"] == path
            assert container[f"{probe}Probe"]["httpGet"]["port"] in ports


def test_a_misspelt_command_line_is_noticed() -> None:
    for wrong in (["stream", "--metrics-prt", "9101"], ["desk", "server"], ["alerts", "run", "x"]):
        with pytest.raises((click.UsageError, AssertionError)):
            assert_parses(wrong)


def test_a_gateway_is_out_of_the_service_before_it_ends(default: Rendering) -> None:
    pod = pod_of(default.find("Deployment", "gateway"))
    probe = pod["containers"][0]["readinessProbe"]
    noticed_ms = probe["periodSeconds"] * probe["failureThreshold"] * 1000
    assert noticed_ms <= Settings().gateway_drain_ms
    assert pod["terminationGracePeriodSeconds"] * 1000 > 2 * Settings().gateway_drain_ms


def test_a_triton_is_out_of_the_service_before_it_ends(everything: Rendering) -> None:
    """It refuses as soon as it is told to end; who asks it must have been told before."""
    for pool in ("triton-cpu", "triton-gpu"):
        pod = pod_of(everything.find("Deployment", pool))
        wait, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert wait == "sleep"
        assert 0 < int(seconds) < pod["terminationGracePeriodSeconds"]


def test_a_streamer_keeps_its_name(default: Rendering) -> None:
    streamer = default.find("StatefulSet", "streamer")
    env = {e["name"]: e for e in pod_of(streamer)["containers"][0]["env"]}
    assert env["FLAGGER_INSTANCE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert streamer["spec"]["serviceName"] == f"{NAME}-streamer"


def test_gpu_differs_where_it_must(everything: Rendering) -> None:
    cpu = pod_of(everything.find("Deployment", "triton-cpu"))
    gpu = pod_of(everything.find("Deployment", "triton-gpu"))
    extra = set(gpu["containers"][0]["args"]) - set(cpu["containers"][0]["args"])
    assert extra == {"--model-config-name=gpu"}
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in cpu["containers"][0]["resources"]["limits"]
    assert gpu["nodeSelector"]
    assert any(t["key"] == "nvidia.com/gpu" for t in gpu["tolerations"])


def test_an_external_triton_brings_no_pool(external_triton: Rendering) -> None:
    assert not any(component.startswith("triton") for component, _ in external_triton.pods())
    for component, pod in external_triton.ours():
        url = environment_of(pod)["FLAGGER_TRITON_URL"]
        assert url == "grpcs://triton.models:8001", component
