"""`make chaos`: a hundred random kills, and everything is decided once, on the right features."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.local.stack import LocalStack
from loadtest.chaos import ChaosPlan, run_chaos
from loadtest.crash_services import Services
from loadtest.crash_world import CrashWorld

SHIPPED_REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.mark.chaos
@pytest.mark.timeout(3_600)
def test_random_kills_lose_nothing_and_double_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills: int = request.config.getoption("kills")
    given: int | None = request.config.getoption("seed")
    plan = ChaosPlan(seed=secrets.randbelow(1_000_000) if given is None else given, kills=kills)
    repository = tmp_path / "model_repository"
    shutil.copytree(SHIPPED_REPOSITORY, repository)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        capsys.disabled(),
        LocalStack(tmp_path / "home", model_repository=repository) as stack,
        Services(stack, tmp_path) as services,
        CrashWorld(stack.settings(), "chaos", 0, tmp_path) as world,
    ):
        console = Console()
        console.print(f"\nchaos: {kills} kills, --seed {plan.seed}; logs in {tmp_path}")
        with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
            bar = progress.add_task("kills", total=kills)
            result = run_chaos(
                plan,
                world,
                services,
                lambda kind: progress.update(bar, advance=1, description=f"killed: {kind}"),
            )
        assert result.verdict is not None
        console.print(
            f"{result.verdict.decisions.decided:,} transactions decided once each; kills: "
            f"{dict(result.kills)}; streamers that ended by themselves: {result.restarts}"
        )
    found = "\n".join(result.verdict.problems)
    assert not found, f"seed {plan.seed}, logs in {tmp_path}:\n{found}"
    assert result.verdict.decisions.decided == world.sent
