"""The images' recipes: what they hold, who runs in them, what they are made from."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "docker"
PINNED = r"[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}"
RECIPES = ("Dockerfile", "Dockerfile.triton")


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (FOLDER / "Dockerfile").read_text()


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return (FOLDER / name).read_text()


def test_the_image_has_every_package(dockerfile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    copied = set(re.findall(r"^COPY (\w+) \1$", dockerfile, re.MULTILINE))
    assert copied == packages
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in packages} <= set(ignore)
    assert f"ARG VERSION={project['project']['version']}" in dockerfile


def test_changed_code_is_built_again(dockerfile: str) -> None:
    """uv's cache, which outlives a build, knows our wheel by pyproject.toml alone."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    installs = [value for kind, value in instructions(dockerfile) if kind == "RUN"]
    (ours,) = (value for value in installs if "uv sync" in value and "--no-editable" in value)
    assert "--mount=type=cache" in ours
    assert f"--refresh-package {name}" in ours


def test_the_small_triton_runs_as_the_large_one_does() -> None:
    recipe = (FOLDER / "Dockerfile.triton").read_text()
    last = recipe.rpartition("\nFROM ")[2]
    # Compose and the chart name the user of NGC's image, and call these two by their names.
    assert re.findall(r"^USER (\S+)$", last, re.MULTILINE) == ["1000:1000"]
    assert "install --yes --no-install-recommends curl" in last
    assert "PATH=/opt/triton/bin:" in last
    assert "> /opt/triton/bin/tritonserver" in recipe
    python = re.findall(r"python:(\d+\.\d+)-slim", recipe)
    assert python
    assert set(re.findall(r"python(\d+\.\d+)|stubs/(\d+\.\d+)", recipe)) <= {
        (python[0], ""), ("", python[0]),
    }  # fmt: skip
    sent = (FOLDER / "Dockerfile.triton.dockerignore").read_text().splitlines()
    for copied in re.findall(r"^COPY (deploy/\S+)", recipe, re.MULTILINE):
        assert (ROOT / copied).exists(), copied
        assert f"!{copied}" in sent


def test_the_image_runs_as_nobody_special(dockerfile: str) -> None:
    last = dockerfile.rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (\S+)$", last, re.MULTILINE)
    assert users == ["10001:10001"]
    assert "FLAGGER_REVISION=${REVISION}" in last  # after `ARG REVISION`: boards mark deploys by it
    assert last.index("USER ") < last.index("deploy.precompile") < last.index("ENTRYPOINT")
    assert 'ENTRYPOINT ["flagger"]' in last
    assert not re.search(r"^ADD |:latest\b|curl|apt-get", dockerfile, re.MULTILINE)


def test_precompiling_reaches_the_kernels_of_both_doors() -> None:
    program = """
from deploy.precompile import precompile
from flagger.features import rows, updates
from flagger.wire import encode, scan
precompile()
kernels = [scan.scan_transactions, rows.score_rows, updates.apply_activity, updates.apply_labels,
           updates.hash_rows, encode._encode]
print([kernel.__name__ for kernel in kernels if not kernel.signatures])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the recipe's instructions with their arguments, continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined]


def test_base_images_are_pinned_where_updates_find_them(recipe: str) -> None:
    """Dependabot reads FROM, and neither ARG nor COPY: what stands there is never moved."""
    steps = instructions(recipe)
    assert not any("$" in value for name, value in steps if name == "FROM")
    named = [value.split(" AS ") for name, value in steps if name == "FROM"]
    stages = {stage for _, stage in named}
    bases = {base for base, _ in named} - stages
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(PINNED, base), base
    for name, value in steps:
        source = re.search(r"--from=(\S+)", value)
        if name == "COPY" and source:
            assert source[1] in stages


def test_the_recipe_keeps_to_the_main_rules_of_hadolint(recipe: str) -> None:
    steps = instructions(recipe)
    for name, value in steps:
        if name in ("ENTRYPOINT", "CMD"):
            assert value.startswith("["), value  # DL3025: without a shell, signals arrive
        if name == "WORKDIR":
            assert value.startswith("/"), value  # DL3000
        if name == "RUN":
            assert not re.search(r"\bsudo\b|^cd ", value), value  # DL3004, DL3003
            for install in re.findall(r"apt-get install[^&;]*", value):
                assert "--no-install-recommends" in install  # DL3015
                assert "rm -rf /var/lib/apt/lists" in value  # DL3009
    names = [name for name, _ in steps]
    assert "MAINTAINER" not in names  # DL4000
    assert names.count("CMD") == 1  # DL4003
    assert names.count("ENTRYPOINT") <= 1  # DL4004
