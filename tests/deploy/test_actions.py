"""The workflows: what linters do not know about this project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict[str, Any]:
    # BaseLoader: "on" is a word, not True.
    loaded: dict[str, Any] = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    return loaded


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_are_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["bench", "ci", "codeql", "release"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_actions_are_pinned(path: Path) -> None:
    used = re.findall(r"uses: (\S+)(.*)", path.read_text())
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), f"{action}: name the version"


def test_an_action_has_one_version() -> None:
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action in re.findall(r"uses: (\S+)", path.read_text()):
            name, _, commit = action.partition("@")
            pins.setdefault(name, set()).add(commit)
    assert {name: found for name, found in pins.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_rights_are_named_and_time_is_limited(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] in ({}, "", {"contents": "read"})
    for name, job in workflow["jobs"].items():
        assert int(job["timeout-minutes"]) <= 45, name
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false", name


def test_each_supported_python_is_tested_with_our_own_commands() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "ci.yml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"])
    assert found
    supported = [f"3.{minor}" for minor in range(int(found[1]), int(found[2]))]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == supported
    commands = [step.get("run", "") for step in steps(workflow)]
    for line in (ROOT / ".ci" / "run").read_text().splitlines():
        if line.startswith("make "):
            assert line in commands, f"ci.yml does not run `{line}`"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"\b((?:deploy|tests|loadtest)/[\w./-]+)", path.read_text())
    for name in named:
        assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_the_benchmark_measures_both_sides_alike() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "bench.yml")
    runs = [step for step in steps(workflow) if "flagger bench stream" in step.get("run", "")]
    assert [step["working-directory"] for step in runs] == ["base", "new"]
    one, other = (step["run"].replace(step["working-directory"], "SIDE") for step in runs)
    assert one == other
    (compares,) = [s["run"] for s in steps(workflow) if "flagger bench compare" in s.get("run", "")]
    assert "$GITHUB_STEP_SUMMARY" in compares
    # Without `shell: bash` GitHub runs `bash -e`, and a pipe hides the comparison's exit code.
    assert workflow["defaults"]["run"]["shell"] == "bash"


def runs_of(name: str, job: str) -> str:
    """Return everything that a job's steps run."""
    workflow = load(ROOT / ".github" / "workflows" / f"{name}.yml")
    return "\n".join(step.get("run", "") for step in workflow["jobs"][job]["steps"])


def uses_of(name: str, job: str) -> dict[str, dict[str, Any]]:
    """Return the actions of a job with what they are given."""
    workflow = load(ROOT / ".github" / "workflows" / f"{name}.yml")
    used = [step for step in workflow["jobs"][job]["steps"] if "uses" in step]
    return {step["uses"].partition("@")[0]: step.get("with", {}) for step in used}


def test_what_needs_no_daemon_here_is_checked_there() -> None:
    checks = runs_of("ci", "check")
    for tool in ("actionlint", "zizmor", "shellcheck"):
        assert tool in checks, tool
    deployment = runs_of("ci", "deployment")
    for tool in (
        "compose.sh config", "--profile gpu config", "deploy/helm/render.sh --check",
        "kubeconform", "terraform fmt -check", "terraform validate",
    ):  # fmt: skip
        assert tool in deployment, tool
    assert "helm lint --strict" in (ROOT / "deploy" / "helm" / "render.sh").read_text()
    assert "mkdocs build --strict" in runs_of("ci", "docs")


def test_the_image_is_built_with_a_cache_run_and_scanned() -> None:
    used = uses_of("ci", "image")
    build, scan = used["docker/build-push-action"], used["anchore/scan-action"]
    assert build["cache-from"] == "type=gha"
    assert scan["image"] == build["tags"]
    assert scan["severity-cutoff"] == "high"
    runs = runs_of("ci", "image")
    assert "hadolint deploy/docker/Dockerfile deploy/docker/Dockerfile.triton" in runs
    assert "--read-only --tmpfs /tmp --tmpfs /var/cache/flagger:uid=10001" in runs
    assert f"{build['tags']} scale" in runs


def test_compose_is_started_and_asked() -> None:
    runs = runs_of("ci", "compose")
    assert runs.index("Dockerfile.triton") < runs.index("compose.sh up")
    assert runs.index("compose.sh up") < runs.index("compose.sh smoke")


def test_a_release_says_of_what_it_was_made() -> None:
    used = uses_of("release", "release")
    build = used["docker/build-push-action"]
    assert (build["provenance"], build["sbom"]) == ("mode=max", "true")
    assert "actions/attest-build-provenance" in used
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    subjects = re.findall(r"subject-(?:path|digest): (\S+)", text)
    assert len(subjects) == 2, subjects  # wheel and chart, and the image


def test_code_is_searched_for_flaws() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "codeql.yml")
    assert workflow["jobs"]["analyse"]["strategy"]["matrix"]["language"] == ["python", "actions"]
    assert set(workflow["on"]) == {"push", "pull_request", "schedule"}
    assert list(uses_of("codeql", "analyse"))[1:] == [
        "github/codeql-action/init", "github/codeql-action/analyze",
    ]  # fmt: skip


def test_dependencies_are_kept_fresh_where_they_are() -> None:
    config = load(ROOT / ".github" / "dependabot.yml")
    kinds = {update["package-ecosystem"]: update for update in config["updates"]}
    assert set(kinds) == {"uv", "github-actions", "docker", "docker-compose"}
    for update in kinds.values():
        for folder in update.get("directories", [update.get("directory")]):
            assert (ROOT / folder.strip("/")).is_dir(), folder
