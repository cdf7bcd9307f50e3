"""The chart as Helm rendered it, for each file of values in ci/.

`deploy/helm/render.sh` renders (it needs helm); the results stand in `tests/deploy/rendered` with
the digest of the chart that they are of, so that the tests examine what a cluster would get on any
machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "fraud-flagger"
RENDERED = Path(__file__).parents[1] / "rendered"
NAMES = ("aws", "default", "everything", "external-triton")
NAME = "flagger-fraud-flagger"
Manifest = dict[str, Any]


def component_of(manifest: Manifest) -> str:
    component: str = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
    return component


def pod_of(manifest: Manifest) -> Manifest:
    """Return the pod that a Deployment, StatefulSet or Job makes."""
    pod: Manifest = manifest["spec"]["template"]["spec"]
    return pod


def environment_of(pod: Manifest) -> dict[str, Any]:
    """Return the variables of a pod's container; None: the cluster sets it."""
    return {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}


@dataclass(frozen=True)
class Rendering:
    """What Helm made of the chart and one file of values; tests change nothing of it."""

    name: str
    manifests: tuple[Manifest, ...]

    def of_kind(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def find(self, kind: str, component: str) -> Manifest:
        wanted = f"{NAME}-{component}"
        (found,) = (m for m in self.of_kind(kind) if m["metadata"]["name"] == wanted)
        return found

    def ports_out(self, component: str) -> set[int]:
        """Return the ports that a component's network policy lets it reach."""
        policy = self.find("NetworkPolicy", component)["spec"]
        return {port["port"] for rule in policy["egress"] for port in rule["ports"]}

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Yield component and pod specification of everything that runs."""
        for manifest in self.of_kind("Deployment", "StatefulSet", "Job"):
            yield component_of(manifest), pod_of(manifest)
        for manifest in self.of_kind("Pod"):
            yield component_of(manifest), manifest["spec"]

    def ours(self) -> Iterator[tuple[str, Manifest]]:
        return ((c, pod) for c, pod in self.pods() if not c.startswith("triton"))


@cache
def _rendering(name: str) -> Rendering:
    documents = yaml.safe_load_all((RENDERED / f"{name}.yaml").read_text())
    return Rendering(name, tuple(document for document in documents if document))


@pytest.fixture(params=NAMES)
def rendering(request: pytest.FixtureRequest) -> Rendering:
    """Each of them."""
    return _rendering(request.param)


@pytest.fixture
def default() -> Rendering:
    return _rendering("default")


@pytest.fixture
def everything() -> Rendering:
    return _rendering("everything")


@pytest.fixture
def aws() -> Rendering:
    return _rendering("aws")


@pytest.fixture
def external_triton() -> Rendering:
    return _rendering("external-triton")
