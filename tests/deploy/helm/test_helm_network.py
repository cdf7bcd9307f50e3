"""Who reaches whom: selectors, network policies, monitors, and the way to the desk's pages."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.deploy.helm.conftest import Rendering, component_of

PROMETHEUS = Path(__file__).parents[3] / "grafana" / "prometheus" / "prometheus.yml"


def test_selectors_find_their_pods(rendering: Rendering) -> None:
    labels: dict[str, dict[str, str]] = {}
    for manifest in rendering.of_kind("Deployment", "StatefulSet", "Job"):
        labels[component_of(manifest)] = manifest["spec"]["template"]["metadata"]["labels"]
    for manifest in rendering.of_kind("Pod"):
        labels[component_of(manifest)] = manifest["metadata"]["labels"]
    seen = 0
    for manifest in rendering.manifests:
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
        component = component_of(manifest)
        wanted = selector(spec)
        assert wanted.items() <= labels[component].items(), manifest["metadata"]["name"]
        others = [c for c, found in labels.items() if wanted.items() <= found.items()]
        assert others == [component]
        seen += 1
    assert seen >= 6


def test_policies_let_the_parts_reach_each_other(everything: Rendering) -> None:
    policies = {component_of(m): m["spec"] for m in everything.of_kind("NetworkPolicy")}
    ran = {component for component, _ in everything.pods()}
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
    # Brokers (told and further ones), Valkey, the collector, the registry, the provider's keys.
    common = {53, 9096, 9196, 6379}
    assert everything.ports_out("streamer") == common | {4318, 8081, 8001}
    assert everything.ports_out("gateway") == common | {4318, 8443, 8001}
    assert everything.ports_out("smoke") == common | {8080}


def test_addresses_without_a_port_mean_the_usual_one(default: Rendering, aws: Rendering) -> None:
    assert default.ports_out("streamer") == {53, 9092, 6379, 8001}
    assert 9098 in aws.ports_out("streamer")


def test_monitors_name_ports_and_jobs_that_exist(everything: Rendering) -> None:
    scrapes = yaml.safe_load(PROMETHEUS.read_text())
    jobs = {scrape["job_name"] for scrape in scrapes["scrape_configs"]}
    watched = set()
    for manifest in everything.of_kind("ServiceMonitor"):
        component = component_of(manifest)
        watched.add(component)
        ports = {p["name"] for p in everything.find("Service", component)["spec"]["ports"]}
        (endpoint,) = manifest["spec"]["endpoints"]
        assert endpoint["port"] in ports
        assert endpoint["relabelings"][0]["replacement"] in jobs
    # The pages count nothing; jobs end.
    assert watched == {c for c, _ in everything.pods()} - {"desk", "desk-migrate", "smoke"}


def test_the_ingress_leads_to_the_pages_over_tls(everything: Rendering, aws: Rendering) -> None:
    ingress = everything.find("Ingress", "desk")["spec"]
    (rule,) = ingress["rules"]
    assert ingress["tls"][0]["hosts"] == [rule["host"]]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    service = everything.find("Service", "desk")
    assert backend["name"] == service["metadata"]["name"]
    assert backend["port"]["name"] in {p["name"] for p in service["spec"]["ports"]}
    assert not aws.of_kind("Ingress")
