"""The documentation: links lead somewhere, nothing is missing, commands exist and run."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.local.stack import LocalStack
from flagger.cli import COMMANDS
from flagger.settings import ENV_PREFIX, Settings
from streamer.topics import ensure_topics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as CI does; a link or anchor that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.mark.timeout(180)
def test_every_page_is_in_the_navigation_and_built(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("")
        built = site / "index.html" if name.name == "index" else site / name / "index.html"
        assert built.is_file(), name


def test_every_command_is_in_the_reference(site: Path) -> None:
    reference = text_of(site / "reference/commands/index.html")
    for name in COMMANDS:
        assert re.search(rf"flagger {re.escape(name)}\b", reference), name
    assert "--new-log" in reference  # options too


def test_every_setting_and_its_meaning_is_in_the_reference(site: Path) -> None:
    page = (site / "reference/settings/index.html").read_text()
    for name in Settings.model_fields:
        assert f'id="flagger.settings.Settings.{name}"' in page, name
    assert "How we prove to Kafka who we are" in page


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for source in re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.read_text()
        ):
            assert not source.startswith(("http://", "https://", "//")), f"{page}: {source}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_settings_that_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    code = "\n".join(
        [
            *re.findall(r"`([^`\n]+)`", text),
            *re.findall(r"(?m)^ {4}(\S.*)$", text),
            *re.findall(r"```bash\n(.*?)```", text, re.DOTALL),
        ]
    )
    for name in re.findall(r"(?:^|[;|&(/ ])flagger ([a-z][a-z-]+)\b", code, re.MULTILINE):
        assert name in COMMANDS, f"flagger {name}"
    for name in set(re.findall(rf"{ENV_PREFIX}([A-Z][A-Z0-9_]+)", text)):
        field = name.lower().removesuffix("_file")
        assert field in Settings.model_fields or name.lower() in Settings.model_fields, name


def test_every_alert_has_a_part_in_the_runbook(site: Path) -> None:
    rules = yaml.safe_load((ROOT / "grafana/prometheus/rules/alerts.yml").read_text())
    page = (site / "monitoring/index.html").read_text()
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 10
    for rule in alerts:
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert path == "docs/monitoring.md"
        assert f'id="{anchor}"' in page, rule["alert"]


@pytest.mark.stack
@pytest.mark.timeout(170)
def test_the_tutorials_commands_run(stack: LocalStack, tmp_path: Path) -> None:
    commands = re.findall(r"```bash\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL)
    assert len(commands) == 4
    settings = stack.settings()
    names = {n: f"tutorial-{n}" for n in Settings.model_fields if n.endswith("_topic")}
    ensure_topics(settings.model_copy(update=names))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    environment |= {f"{ENV_PREFIX}{k.upper()}": v for k, v in names.items()}
    environment |= {
        "FLAGGER_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers or "",
        "FLAGGER_TRITON_URL": settings.triton_url or "",
        "FLAGGER_VALKEY_URL": settings.valkey_url or "",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    bash = shutil.which("bash")
    assert bash is not None
    for command in commands:
        done = subprocess.run(
            [bash, "-euo", "pipefail", "-c", command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr[-2_000:]}"
    assert (tmp_path / "runs/first/model_card.md").is_file()
