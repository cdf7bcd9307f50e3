"""The chart as Helm rendered it, for each file of values in ci/.

`deploy/helm/render.sh` renders (it needs helm); the results stand in `rendered/` with the digest of
the chart that they are of, so that this examines what a cluster would get on any machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from flagger.cli import cli
from flagger.settings import ENV_PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "fraud-flagger"
RENDERED = Path(__file__).with_name("rendered")
NAMES = ("aws", "default", "everything", "external-triton")
NAME = "flagger-fraud-flagger"
Manifest = dict[str, Any]
PORTS = {
    "streamer": ("metrics", 9101),
    "gateway": ("http", 8080),
    "alerts": ("metrics", 9103),
    "desk": ("http", 8501),
    "desk-consumer": ("metrics", 9104),
    "labels-watch": ("metrics", 9105),
}


def manifests(name: str) -> list[Manifest]:
    documents = yaml.safe_load_all((RENDERED / f"{name}.yaml").read_text())
    return [document for document in documents if document]


def pod_of(manifest: Manifest) -> Manifest:
    pod: Manifest = manifest["spec"]["template"]["spec"]
    return pod


def find(name: str, kind: str, component: str) -> Manifest:
    wanted = f"{NAME}-{component}"
    (found,) = (m for m in manifests(name) if m["kind"] == kind and m["metadata"]["name"] == wanted)
    return found


def pods(name: str) -> Iterator[tuple[str, Manifest]]:
    """Yield component and pod specification of everything that runs."""
    for manifest in manifests(name):
        component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield component, manifest["spec"]["template"]["spec"]
        elif manifest["kind"] == "Pod":
            yield component, manifest["spec"]


def ours(name: str) -> Iterator[tuple[str, Manifest]]:
    return ((c, pod) for c, pod in pods(name) if not c.startswith("triton"))


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


def test_the_renderings_are_of_this_chart() -> None:
    digest = hashlib.sha256()
    for path in sorted(str(p.relative_to(CHART)) for p in CHART.rglob("*") if p.is_file()):
        of_file = hashlib.sha256((CHART / path).read_bytes()).hexdigest()
        digest.update(f"{of_file}  ./{path}\n".encode())
    assert sorted(p.stem for p in RENDERED.iterdir()) == sorted(NAMES)
    for name in NAMES:
        first = (RENDERED / f"{name}.yaml").read_text().splitlines()[0]
        assert first.split()[-1] == digest.hexdigest(), "run deploy/helm/render.sh (needs helm)"


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_one(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a-secret-value")
    seen = 0
    for component, pod in ours(name):
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
    assert seen == {"everything": 8, "aws": 6}.get(name, 3)


def test_numbers_of_the_values_stay_whole() -> None:
    pod = find("everything", "StatefulSet", "streamer")["spec"]["template"]["spec"]
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    assert env["FLAGGER_MAX_CUSTOMERS_IN_MEMORY"] == "2000000"
    assert env["FLAGGER_KAFKA_PASSWORD_FILE"] == "/etc/flagger/kafka/password"


@pytest.mark.parametrize("name", NAMES)
def test_pods_may_do_little(name: str) -> None:
    for component, pod in pods(name):
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


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_probes(name: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a-key")
    for component, pod in ours(name):
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


def test_a_gateway_is_out_of_the_service_before_it_ends() -> None:
    pod = find("default", "Deployment", "gateway")["spec"]["template"]["spec"]
    probe = pod["containers"][0]["readinessProbe"]
    noticed_ms = probe["periodSeconds"] * probe["failureThreshold"] * 1000
    assert noticed_ms <= Settings().gateway_drain_ms
    assert pod["terminationGracePeriodSeconds"] * 1000 > 2 * Settings().gateway_drain_ms


def test_a_streamer_keeps_its_name() -> None:
    streamer = find("default", "StatefulSet", "streamer")
    pod = streamer["spec"]["template"]["spec"]
    env = {e["name"]: e for e in pod["containers"][0]["env"]}
    assert env["FLAGGER_INSTANCE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert streamer["spec"]["serviceName"] == f"{NAME}-streamer"


@pytest.mark.parametrize("name", NAMES)
def test_selectors_find_their_pods(name: str) -> None:
    labels: dict[str, dict[str, str]] = {}
    for manifest in manifests(name):
        component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            labels[component] = manifest["spec"]["template"]["metadata"]["labels"]
        elif manifest["kind"] == "Pod":
            labels[component] = manifest["metadata"]["labels"]
    seen = 0
    for manifest in manifests(name):
        spec = manifest.get("spec", {})
        selector = {
            "Service": lambda s: s["selector"],
            "PodDisruptionBudget": lambda s: s["selector"]["matchLabels"],
            "NetworkPolicy": lambda s: s["podSelector"]["matchLabels"],
            "Deployment": lambda s: s["selector"]["matchLabels"],
            "StatefulSet": lambda s: s["selector"]["matchLabels"],
        }.get(manifest["kind"])
        if selector is None:
            continue
        component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        wanted = selector(spec)
        assert wanted.items() <= labels[component].items(), manifest["metadata"]["name"]
        others = [c for c, found in labels.items() if wanted.items() <= found.items()]
        assert others == [component]
        seen += 1
    assert seen >= 6


def test_policies_let_the_parts_reach_each_other() -> None:
    policies = {
        m["metadata"]["labels"]["app.kubernetes.io/component"]: m["spec"]
        for m in manifests("everything")
        if m["kind"] == "NetworkPolicy"
    }
    ran = {component for component, _ in pods("everything")}
    assert set(policies) == ran

    def sends_to(component: str) -> dict[str, int]:
        found = {}
        for rule in policies[component]["egress"]:
            for peer in rule.get("to", []):
                target = peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                found[target] = rule["ports"][0]["port"]
        return found

    assert sends_to("streamer") == {"triton-gpu": 8001}
    assert sends_to("gateway") == {"triton-cpu": 8001}
    assert sends_to("smoke") == {"gateway": 8080}
    assert policies["triton-cpu"]["egress"] == []
    for component in ("streamer", "gateway", "smoke"):
        ports = {p["port"] for rule in policies[component]["egress"] for p in rule["ports"]}
        assert {53, 9096, 6379} <= ports
        assert (443 in ports) == (component == "gateway")


def test_the_desk_reaches_its_database_and_no_more() -> None:
    def ports(component: str) -> set[int]:
        policy = find("everything", "NetworkPolicy", component)["spec"]
        return {p["port"] for rule in policy["egress"] for p in rule["ports"]}

    assert ports("desk-migrate") == {53, 5432}
    assert ports("desk") == {53, 5432, 6379}
    assert ports("desk-consumer") == {53, 5432, 6379, 9096}
    assert ports("alerts") == {53, 443, 465, 587, 9096}
    assert ports("labels-watch") == {53, 9096}
    for component in ("desk", "desk-consumer", "desk-migrate"):
        pod = dict(pods("everything"))[component]
        mounted = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
        assert ("fraud-flagger-valkey" in mounted) == (component != "desk-migrate")
        assert mounted & {"desk-database", "desk-owner"}


def test_the_desk_is_migrated_before_it_starts() -> None:
    job = find("everything", "Job", "desk-migrate")
    policy = find("everything", "NetworkPolicy", "desk-migrate")
    hooks = job["metadata"]["annotations"]
    assert hooks["helm.sh/hook"] == "pre-install,pre-upgrade"
    allowed = policy["metadata"]["annotations"]
    assert allowed["helm.sh/hook"] == hooks["helm.sh/hook"]
    assert int(allowed["helm.sh/hook-weight"]) < int(hooks["helm.sh/hook-weight"])
    # Only the migration has the user who may change tables.
    owner = {v["secret"]["secretName"] for v in pod_of(job)["volumes"] if "secret" in v}
    assert owner == {"desk-owner"}
    consumer = pod_of(find("everything", "StatefulSet", "desk-consumer"))
    assert "desk-owner" not in json.dumps(consumer)


def test_the_ingress_leads_to_the_pages_over_tls() -> None:
    ingress = find("everything", "Ingress", "desk")["spec"]
    (rule,) = ingress["rules"]
    assert ingress["tls"][0]["hosts"] == [rule["host"]]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    service = find("everything", "Service", "desk")
    assert backend["name"] == service["metadata"]["name"]
    assert backend["port"]["name"] in {p["name"] for p in service["spec"]["ports"]}
    assert not [m for m in manifests("aws") if m["kind"] == "Ingress"]


def test_keda_reads_the_lag_by_iam() -> None:
    (trigger,) = find("aws", "ScaledObject", "streamer")["spec"]["triggers"]
    # The scaler `kafka` knows no IAM; this one does, and wants the region here.
    assert trigger["type"] == "apache-kafka"
    assert trigger["metadata"]["sasl"] == "aws_msk_iam"
    assert trigger["metadata"]["tls"] == "enable"
    assert trigger["metadata"]["awsRegion"] == "eu-central-1"
    identity = find("aws", "TriggerAuthentication", "kafka")
    assert trigger["authenticationRef"]["name"] == identity["metadata"]["name"]
    assert identity["spec"]["podIdentity"]["provider"] == "aws"
    assert "secretTargetRef" not in identity["spec"]
    (by_password,) = find("everything", "ScaledObject", "streamer")["spec"]["triggers"]
    assert by_password["type"] == "kafka"
    parameters = find("everything", "TriggerAuthentication", "kafka")["spec"]["secretTargetRef"]
    assert {p["parameter"] for p in parameters} == {
        "tls", "sasl", "username", "password", "ca", "cert", "key",
    }  # fmt: skip


def test_gpu_differs_where_it_must() -> None:
    cpu = find("everything", "Deployment", "triton-cpu")["spec"]["template"]["spec"]
    gpu = find("everything", "Deployment", "triton-gpu")["spec"]["template"]["spec"]
    extra = set(gpu["containers"][0]["args"]) - set(cpu["containers"][0]["args"])
    assert extra == {"--model-config-name=gpu"}
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in cpu["containers"][0]["resources"]["limits"]
    assert gpu["nodeSelector"]
    assert any(t["key"] == "nvidia.com/gpu" for t in gpu["tolerations"])


def test_scaling_stays_below_the_partitions() -> None:
    scaled = find("everything", "ScaledObject", "streamer")["spec"]
    streamer = find("everything", "StatefulSet", "streamer")
    env = {
        e["name"]: e.get("value")
        for e in streamer["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert scaled["maxReplicaCount"] <= int(env["FLAGGER_PARTITIONS"])
    assert "replicas" not in streamer["spec"]  # it would undo the scaler's number at each upgrade
    assert scaled["scaleTargetRef"]["name"] == streamer["metadata"]["name"]
    trigger = scaled["triggers"][0]["metadata"]
    assert trigger["consumerGroup"] == Settings().consumer_group
    assert trigger["topic"] == Settings().transactions_topic


def test_gateways_follow_the_requests() -> None:
    scaler = find("everything", "HorizontalPodAutoscaler", "gateway")["spec"]
    gateway = find("everything", "Deployment", "gateway")
    assert scaler["scaleTargetRef"]["name"] == gateway["metadata"]["name"]
    assert "replicas" not in gateway["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 20)
    cpu, requests = scaler["metrics"]
    assert cpu["resource"]["name"] == "cpu"  # a share of what the pods ask for
    assert gateway["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    assert requests["pods"]["metric"]["name"] == "flagger_gateway_requests_per_second"
    assert requests["pods"]["target"]["type"] == "AverageValue"


@pytest.mark.parametrize("name", NAMES)
def test_a_drained_node_takes_one_of_each_at_a_time(name: str) -> None:
    running = {
        m["metadata"]["name"] for m in manifests(name) if m["kind"] in ("Deployment", "StatefulSet")
    }
    budgets = {
        m["metadata"]["name"]: m["spec"]["maxUnavailable"]
        for m in manifests(name)
        if m["kind"] == "PodDisruptionBudget"
    }
    assert budgets.keys() == running - {f"{NAME}-labels-watch"}  # nothing waits for it
    assert set(budgets.values()) == {1}


def test_monitors_name_ports_and_jobs_that_exist() -> None:
    scrapes = yaml.safe_load((ROOT / "grafana" / "prometheus" / "prometheus.yml").read_text())
    jobs = {scrape["job_name"] for scrape in scrapes["scrape_configs"]}
    watched = set()
    for manifest in manifests("everything"):
        if manifest["kind"] != "ServiceMonitor":
            continue
        component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        watched.add(component)
        ports = {p["name"] for p in find("everything", "Service", component)["spec"]["ports"]}
        (endpoint,) = manifest["spec"]["endpoints"]
        assert endpoint["port"] in ports
        assert endpoint["relabelings"][0]["replacement"] in jobs
    # The pages count nothing; jobs end.
    assert watched == {c for c, _ in pods("everything")} - {"desk", "desk-migrate", "smoke"}


def test_an_external_triton_brings_no_pool() -> None:
    assert not any(component.startswith("triton") for component, _ in pods("external-triton"))
    for component, pod in ours("external-triton"):
        env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        assert env["FLAGGER_TRITON_URL"] == "grpcs://triton.models:8001", component


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


def test_on_aws_our_pods_have_an_identity_and_no_password() -> None:
    for component, pod in pods("aws"):
        is_ours = not component.startswith("triton")
        assert pod.get("serviceAccountName") == ("fraud-flagger" if is_ours else None)
        # The role's token is a volume of its own, put there by EKS; the cluster's own stays away.
        assert pod["automountServiceAccountToken"] is False
    for component, pod in ours("aws"):
        if component == "desk-migrate":
            continue  # it talks to the database alone
        environment = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        assert environment["FLAGGER_KAFKA_SASL_MECHANISM"] == "AWS_MSK_IAM"
        assert environment["FLAGGER_KAFKA_AWS_REGION"] == environment["AWS_REGION"]
        assert not any("PASSWORD" in name or "USERNAME" in name for name in environment)
    for component in ("streamer", "gateway", "smoke"):
        rules = find("aws", "NetworkPolicy", component)["spec"]["egress"]
        ports = {port["port"] for rule in rules for port in rule["ports"]}
        assert {443, 9098} <= ports
        assert {"ipBlock": {"cidr": "169.254.170.23/32"}} in [
            p for r in rules for p in r.get("to", [])
        ]


def test_models_may_stand_in_a_bucket() -> None:
    (volume,) = (m for m in manifests("aws") if m["kind"] == "PersistentVolume")
    (claim,) = (m for m in manifests("aws") if m["kind"] == "PersistentVolumeClaim")
    assert volume["spec"]["csi"]["driver"] == "s3.csi.aws.com"
    assert volume["spec"]["csi"]["volumeAttributes"] == {"bucketName": "bank-models"}
    assert {"read-only", "allow-other", "region eu-central-1", "prefix fraud/production/"} == set(
        volume["spec"]["mountOptions"]
    )
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"]
    # An empty class on both sides, or the cluster's default one makes a disk.
    assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"] == ""
    assert claim["spec"]["accessModes"] == volume["spec"]["accessModes"] == ["ReadOnlyMany"]
    mounted = [
        source["persistentVolumeClaim"]
        for _, pod in pods("aws")
        for source in pod["volumes"]
        if "persistentVolumeClaim" in source
    ]
    assert {source["claimName"] for source in mounted} == {claim["metadata"]["name"]}
    assert all(source["readOnly"] for source in mounted)
