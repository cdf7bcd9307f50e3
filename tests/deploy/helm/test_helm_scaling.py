"""How the chart's parts grow, and how few of them a drained node takes at a time."""

from __future__ import annotations

from flagger.settings import Settings
from tests.deploy.helm.conftest import NAME, Rendering, environment_of, pod_of


def test_scaling_stays_below_the_partitions(everything: Rendering) -> None:
    scaled = everything.find("ScaledObject", "streamer")["spec"]
    streamer = everything.find("StatefulSet", "streamer")
    partitions = int(environment_of(pod_of(streamer))["FLAGGER_PARTITIONS"])
    assert scaled["maxReplicaCount"] <= partitions
    assert "replicas" not in streamer["spec"]  # it would undo the scaler's number at each upgrade
    assert scaled["scaleTargetRef"]["name"] == streamer["metadata"]["name"]
    trigger = scaled["triggers"][0]["metadata"]
    assert trigger["consumerGroup"] == Settings().consumer_group
    assert trigger["topic"] == Settings().transactions_topic


def test_keda_reads_the_lag_by_iam(everything: Rendering, aws: Rendering) -> None:
    (trigger,) = aws.find("ScaledObject", "streamer")["spec"]["triggers"]
    # The scaler `kafka` knows no IAM; this one does, and wants the region here.
    assert trigger["type"] == "apache-kafka"
    assert trigger["metadata"]["sasl"] == "aws_msk_iam"
    assert trigger["metadata"]["tls"] == "enable"
    assert trigger["metadata"]["awsRegion"] == "eu-central-1"
    identity = aws.find("TriggerAuthentication", "kafka")
    assert trigger["authenticationRef"]["name"] == identity["metadata"]["name"]
    assert identity["spec"]["podIdentity"]["provider"] == "aws"
    assert "secretTargetRef" not in identity["spec"]
    (by_password,) = everything.find("ScaledObject", "streamer")["spec"]["triggers"]
    assert by_password["type"] == "kafka"
    parameters = everything.find("TriggerAuthentication", "kafka")["spec"]["secretTargetRef"]
    assert {p["parameter"] for p in parameters} == {
        "tls", "sasl", "username", "password", "ca", "cert", "key",
    }  # fmt: skip


def test_gateways_follow_the_requests(everything: Rendering) -> None:
    scaler = everything.find("HorizontalPodAutoscaler", "gateway")["spec"]
    gateway = everything.find("Deployment", "gateway")
    assert scaler["scaleTargetRef"]["name"] == gateway["metadata"]["name"]
    assert "replicas" not in gateway["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 20)
    cpu, requests = scaler["metrics"]
    assert cpu["resource"]["name"] == "cpu"  # a share of what the pods ask for
    assert pod_of(gateway)["containers"][0]["resources"]["requests"]["cpu"]
    assert requests["pods"]["metric"]["name"] == "flagger_gateway_requests_per_second"
    assert requests["pods"]["target"]["type"] == "AverageValue"


def test_a_drained_node_takes_one_of_each_at_a_time(rendering: Rendering) -> None:
    running = {m["metadata"]["name"] for m in rendering.of_kind("Deployment", "StatefulSet")}
    budgets = {
        m["metadata"]["name"]: m["spec"]["maxUnavailable"]
        for m in rendering.of_kind("PodDisruptionBudget")
    }
    assert budgets.keys() == running - {f"{NAME}-labels-watch"}  # nothing waits for it
    assert set(budgets.values()) == {1}
