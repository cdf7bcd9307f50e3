"""`make chaos`: two gateways and their servers die at random, and every answer stays true."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.local.stack import LocalStack
from loadtest.crash_services import Services
from loadtest.crash_world import CrashWorld
from loadtest.gateway_chaos import GatewayChaosPlan, run_gateway_chaos


@pytest.mark.chaos
@pytest.mark.timeout(1_200)
def test_whatever_is_killed_a_payment_has_one_decision_and_every_payer_hears_it(
    request: pytest.FixtureRequest,
    own_stack: LocalStack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kills: int = request.config.getoption("gateway_kills")
    given: int | None = request.config.getoption("seed")
    plan = GatewayChaosPlan(secrets.randbelow(1_000_000) if given is None else given, kills)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        capsys.disabled(),
        Services(own_stack, tmp_path) as services,
        CrashWorld(own_stack.settings(), "gateways", 0, tmp_path) as world,
    ):
        console = Console()
        console.print(f"\ngateways: {kills} kills, --seed {plan.seed}; logs in {tmp_path}")
        with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
            bar = progress.add_task("kills", total=kills)
            result = run_gateway_chaos(
                plan,
                world,
                services,
                tmp_path,
                lambda kind: progress.update(bar, advance=1, description=kind),
            )
        console.print(
            f"{result.payments:,} payments, {result.answers:,} answers; {dict(result.kills)}; "
            f"answered: {dict(result.statuses)}; {result.changed} with another answer while "
            f"Valkey was in trouble"
        )
    found = "\n".join(result.problems)
    assert not found, f"seed {plan.seed}, logs in {tmp_path}:\n{found}"
    assert result.answers >= result.payments > 0
