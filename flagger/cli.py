"""The `flagger` command: a table of sub-commands, each loaded only when it is asked for.

The table holds names, not imports, so that the core stays free of the doors and
`flagger --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys

import click

from flagger import __version__
from flagger.errors import FlaggerError

__all__ = ["COMMANDS", "cli", "main"]

# name -> (module:attribute of the click command, one line for --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("loadtest.demo_cli:demo", "Train, export, start everything, stream, check, report."),
    "up": ("deploy.local.cli:up", "Run the embedded Kafka, Triton and Valkey until Ctrl-C."),
    "status": ("deploy.local.cli:status", "Show the embedded stack's processes and addresses."),
    "down": ("deploy.local.cli:down", "Stop an embedded stack that was left running."),
    "simulate": ("train.simulate_cli:simulate", "Write a file of simulated transactions."),
    "train": ("train.cli:train", "Train a model on a file of transactions."),
    "evaluate": (
        "train.evaluate_cli:evaluate",
        "Judge the model and baselines over several periods; HTML report.",
    ),
    "export": ("export.cli:export", "Export a trained model to the Triton model repository."),
    "models": ("export.models_cli:models", "List, compare, publish, roll back, examine models."),
    "policy": ("export.policy_cli:policy", "Show, set and take back the thresholds that decide."),
    "drift": ("train.drift_cli:drift", "Is what arrives still what the model was judged on?"),
    "rules": ("train.rules_cli:rules", "Check lists and rules, and try them on history."),
    "retrain": (
        "train.retrain_cli:retrain_command",
        "Train a candidate on the latest history, compare it with the live version.",
    ),
    "produce": ("streamer.produce_cli:produce", "Send a file's transactions to Kafka."),
    "stream": ("streamer.cli:stream", "Score transactions from Kafka, exactly once."),
    "dead-letters": (
        "streamer.dead_letters_cli:dead_letters",
        "List, show and send again what could not be decided.",
    ),
    "alerts": ("review.alerts.cli:alerts", "Tell people of flagged transactions at once."),
    "gateway": ("gateway.cli:gateway", "Serve synchronous scoring over HTTP."),
    "keys": ("gateway.keys_cli:keys", "Make, list and revoke the gateway's API keys."),
    "desk": ("review.cli:desk", "The analysts' review desk: cases, labels, pages, users."),
    "loadtest": ("loadtest.loadtest_cli:loadtest", "Prove the gateway's latency with Locust."),
    "grafana": ("grafana.cli:grafana", "Write the dashboards to files, or into Grafana."),
    "bench": ("loadtest.bench_cli:bench", "Measure throughput, latency and features."),
    "scale": ("deploy.scaling_cli:scale", "Compute what a rate needs, and what breaks first."),
    "smoke": ("deploy.smoke_cli:smoke", "Check that a deployment decides, once each."),
    "decisions": ("deploy.aws.decisions_cli:decisions", "Look up decisions in DynamoDB."),
    "backup": ("deploy.backup_cli:backup", "Write state and cases to a folder, while all runs."),
    "restore": ("deploy.backup_cli:restore_command", "Bring a backup into empty databases."),
    "health": ("deploy.health_cli:health", "Ask a service for its health, for probes."),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module behind `cmd_name`, or return None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module_name, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flagger")
def cli() -> None:
    """Real-time payment fraud scoring on Kafka and Triton.

    Every command has its own --help. Settings come from FLAGGER_* environment variables.
    Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 configuration, 4 data file,
    5 model server, 6 state store, 7 embedded stack, 8 publishing refused, 10 Grafana,
    11 case store, 12 schema registry, 13 Dask cluster, 130 interrupted.
    """


def main() -> None:
    """Run the command line; turn our errors into one readable line and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except FlaggerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
