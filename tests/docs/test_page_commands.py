"""Every shell command of README.md and docs/ is run, or pages.toml says why not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from flagger.models import live_version
from tests.docs.conftest import ROOT, TABLES, Reader, as_given, commands_of, entry_of

FIRST = [ROOT / name for name in TABLES["first"]]
OTHERS = sorted({*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"} - set(FIRST))
COMMANDS = {
    str(page.relative_to(ROOT)): commands
    for page in [*FIRST, *OTHERS]
    if (commands := commands_of(page.read_text()))
}
EVERY = [command for commands in COMMANDS.values() for command in commands]
TO_RUN = {
    page: [command for command in commands if entry_of("not_run", command) is None]
    for page, commands in COMMANDS.items()
}


@pytest.mark.stack
@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", [page for page, commands in TO_RUN.items() if commands])
def test_the_commands_of_a_page_run(page: str, reader: Reader) -> None:
    variables = dict(reader.variables)
    for command in TO_RUN[page]:
        given = as_given(command)
        if service := entry_of("service", given):
            reader.serve(given, service["port"], service["ready"]).stop()
        else:
            reader.give(given)
    reader.variables = variables  # what a page exports is for that page
    if page == "docs/tutorial.md":
        assert (reader.folder / "runs/first/model_card.md").is_file()
        assert live_version(reader.folder / "model_repository") == "2"


def test_each_page_with_commands_is_known() -> None:
    assert {"README.md", "docs/tutorial.md", "docs/drift.md", "docs/deploy.md"} <= set(COMMANDS)
    assert len(EVERY) > 100


def test_no_entry_is_stale() -> None:
    for table in ("not_run", "service", "may_say_no"):
        for entry in TABLES[table]:
            assert any(entry_of(table, command) == entry for command in EVERY), entry
    for entry in TABLES["replace"]:
        without = [other for other in TABLES["replace"] if other != entry]
        to_run = [command for commands in TO_RUN.values() for command in commands]
        assert any(as_given(c) != as_given(c, without) for c in to_run), entry
    assert all(path.is_file() for path in FIRST)


def test_tests_that_run_a_command_instead_exist() -> None:
    for entry in TABLES["not_run"]:
        assert len(entry["reason"]) > 10, entry
        path, _, name = entry.get("test", "").partition("::")
        if path:
            tree = ast.parse(Path(ROOT / path).read_text())
            tests = {getattr(node, "name", "") for node in tree.body}
            assert any(one.startswith("test_") for one in tests), entry
            assert not name or name in tests, entry


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        (
            "Text.\n\n    flagger up   # why\n    flagger \\\n        down\n",
            ["flagger up", "flagger down"],
        ),
        ("```bash\nany '\n  thing # no remark'\n```\n", ["any '\nthing # no remark'"]),
        ("```text\n$ flagger scale\nan answer\n```\n", ["flagger scale"]),
        ("```toml\nflagger = 1\n```\n\n    a diagram --> flagger up\n", []),
        ("1. Item\n\n       A=b flagger up\n", ["A=b flagger up"]),
    ],
)
def test_what_is_a_command(text: str, commands: list[str]) -> None:
    assert commands_of(text) == commands
