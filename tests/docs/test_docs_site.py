"""The documentation: links lead somewhere, nothing is missing, commands and settings exist."""

from __future__ import annotations

import html
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from flagger.cli import COMMANDS, cli
from flagger.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


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


def shown_commands(page: Path, program: str) -> Iterator[tuple[str, bool]]:
    """Yield the arguments of each call of a program, and whether it stands in a block of code."""
    text = page.read_text()
    fenced = r"(?ms)^ *```\w*\n(.*?)```"
    blocks = [*re.findall(fenced, text), *re.findall(r"(?m)(?:^ {4,}\S.*\n?)+", text)]
    lines = [(re.sub(r"\\\n\s*", " ", block), True) for block in blocks]
    inline = re.findall(r"`([^`]+)`", re.sub(fenced, "", text))
    lines += [(" ".join(code.split()), False) for code in inline]
    call = rf"\s*(?:[A-Z_]+=\S+ +|\$ |uv run |.*docker run \S+ )*{program} (.*)"
    for code, in_block in lines:
        for line in code.splitlines():
            for part in re.split(r"\|\||&&|;|\||\$\(|[<>]|(?<!\S)#.*", line):
                if found := re.fullmatch(call, part):
                    yield found[1].translate(str.maketrans("", "", "[]")), in_block  # [optional]


def refusal(arguments: list[str]) -> click.UsageError | None:
    """Return why the command line refuses these arguments; nothing is run."""
    command: click.Command = cli
    context = click.Context(cli, info_name="flagger")
    try:
        while isinstance(command, click.Group) and arguments and arguments[0][0] != "-":
            name, *arguments = arguments
            found = command.get_command(context, name)
            if found is None:
                return click.UsageError(f"no command {name}")
            command = found
        if not isinstance(command, click.Group):
            command.make_context(command.name, list(arguments), parent=context)
    except click.UsageError as error:
        return error
    except click.exceptions.Exit:  # --help
        pass
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_that_pages_show_are_understood(page: Path) -> None:
    """Sub-commands, options and their values; a reader's files need not be here."""
    ours, in_compose = "flagger", r"\S*compose\.sh run --rm tools"
    for shown, in_block in [*shown_commands(page, ours), *shown_commands(page, in_compose)]:
        error = refusal(shlex.split(shown))
        if error is None or "does not exist" in error.format_message():
            continue
        if isinstance(error, click.BadParameter) and re.search(r" [A-Z]+$", shown):
            continue  # `--rate N`: a value that stands for others
        # A sentence may name a command or an option without the rest.
        unfinished = isinstance(error, click.MissingParameter) or (
            isinstance(error, click.BadOptionUsage) and "requires an argument" in str(error)
        )
        assert unfinished, f"flagger {shown}: {error.format_message()}"
        assert not in_block, f"flagger {shown}: {error.format_message()}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_pages_call_besides_is_there(page: Path) -> None:
    """Targets of make, values of the chart."""
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    for shown, _ in shown_commands(page, "make"):
        assert not re.match(r"[a-z]", shown) or shown.split()[0] in targets, f"make {shown}"
    values = yaml.safe_load((ROOT / "deploy/helm/fraud-flagger/values.yaml").read_text())
    for shown, _ in shown_commands(page, "helm"):
        for name in re.findall(r"--set ([\w.]+)=", shown):
            found = values
            for part in name.split("."):
                if found == {}:  # settings: any
                    break
                assert part in found, f"--set {name}"
                found = found[part]


def test_a_wrong_command_in_a_page_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for wrong in (
        "models promote 3",
        "export --now runs/x",
        "stream --metrics-port many",
        "nothing",
    ):
        page.write_text(f"Text.\n\n    flagger {wrong}   # why\n\nIn a line: `flagger {wrong}`.\n")
        shown = list(shown_commands(page, "flagger"))
        assert [in_block for _, in_block in shown] == [True, False]
        for words, _ in shown:
            assert refusal(shlex.split(words)) is not None, words


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_pages_outside_of_the_site_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        found = ROOT / (path or name)
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", found.read_text())
            known = {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}
            assert anchor in known, target


def test_every_alert_has_a_part_in_the_runbook(site: Path) -> None:
    rules = yaml.safe_load((ROOT / "grafana/prometheus/rules/alerts.yml").read_text())
    page = (site / "monitoring/index.html").read_text()
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 10
    for rule in alerts:
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert path == "docs/monitoring.md"
        assert f'id="{anchor}"' in page, rule["alert"]
