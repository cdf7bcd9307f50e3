"""Config files of the entries fit together: all are written, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.layout import write_configs
from flagger.errors import PublishError


def contents(repository: Path) -> dict[str, str]:
    return {
        str(path.relative_to(repository)): path.read_text()
        for path in sorted(repository.rglob("*"))
        if path.is_file()
    }


def test_a_failure_puts_back_what_was_written_before_it(tmp_path: Path) -> None:
    first, second, new = Path("a/config.pbtxt"), Path("b/config.pbtxt"), Path("c/config.pbtxt")
    write_configs(tmp_path, {first: "old a", second: "old b"})
    before = contents(tmp_path)
    (tmp_path / "d").write_text("a file where a folder is needed")
    wanted = {first: "new a", second: None, new: "new c", Path("d/config.pbtxt"): "new d"}
    with pytest.raises(PublishError, match=r"d/config\.pbtxt cannot be written"):
        write_configs(tmp_path, wanted)
    (tmp_path / "d").unlink()
    assert contents(tmp_path) == before
    assert write_configs(tmp_path, wanted) == {
        first: "old a",
        second: "old b",
        new: None,
        Path("d/config.pbtxt"): None,
    }
    assert contents(tmp_path)["c/config.pbtxt"] == "new c"
