"""A model version that Triton loses for a while, for tests of what is done without it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from export.server import ModelServer
from flagger.models import ENTRIES, version_folder

__all__ = ["unloaded"]


@contextmanager
def unloaded(repository: Path, version: str, triton_url: str) -> Iterator[None]:
    """Take a version's folders out of the repository and load the rest; undo it at the end.

    Args:
        repository: The model repository that Triton serves.
        version: Which one it loses.
        triton_url: host:port of its gRPC door.
    """
    away = repository / "away"
    places = [version_folder(repository, version, entry) for entry in ENTRIES]
    with closing(ModelServer(triton_url)) as server:
        for place in places:
            (away / place.parent.name).mkdir(parents=True)
            place.rename(away / place.parent.name / place.name)
        server.load()
        try:
            yield
        finally:
            for place in places:
                (away / place.parent.name / place.name).rename(place)
            shutil.rmtree(away)
            server.load()
