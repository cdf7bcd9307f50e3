"""`flagger models`: what is in the repository, what is live, and moving the pointer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from export import publish
from export.cli import running_triton
from export.comparison import Comparison, compare_versions
from export.doctor import RELEASES, Finding, examine
from export.options import serving_triton_option
from export.trials_cli import canary, shadow
from flagger.errors import ConfigurationError, FlaggerError
from flagger.models import list_versions, load_version, read_metrics
from flagger.options import repository_option, why_option
from flagger.pointer import POINTER_FILE, Pointer, read_audit, read_pointer
from flagger.settings import load_settings

__all__ = ["models"]

_COLUMNS: tuple[str, ...] = (
    "",
    "version",
    "exported",
    "trees",
    "roc auc",
    "av. precision",
    "policy",
    "review at",
    "decline at",
    "state",
)


@click.group()
def models() -> None:
    """List, judge, try, publish and roll back model versions."""


models.add_command(shadow)
models.add_command(canary)


@models.command("list")
@repository_option
def list_command(repository: Path | None) -> None:
    """List the versions; the live one has a star. Exit code 1 if one is damaged."""
    repository = repository or load_settings().model_repository
    pointer = read_pointer(repository) if (repository / POINTER_FILE).exists() else None
    live = pointer.version if pointer else None
    rows = [_COLUMNS]
    damaged = 0
    for version in list_versions(repository):
        star = "*" if version == live else ""
        try:
            model = load_version(repository, version)
        except FlaggerError as error:
            damaged += 1
            rows.append((star, version, *[""] * 7, f"refused: {error}"))
            continue
        test = read_metrics(repository, version).get("test", {})
        facts = (
            star,
            version,
            model.manifest.get("created_at", "")[:16],
            str(model.manifest.get("n_trees", "")),
            _number(test.get("roc_auc")),
            _number(test.get("average_precision")),
            model.policy.version,
            f"{model.policy.review_threshold:.4f}",
            f"{model.policy.decline_threshold:.4f}",
            _state(pointer, version),
        )
        rows.append(facts)
    if len(rows) == 1:
        click.echo(f"{repository} has no model version; publish one with `flagger export`")
        return
    _print_columns(rows)
    if damaged:
        raise SystemExit(1)


@models.command()
@click.argument("version", required=False)
@repository_option
def show(version: str | None, repository: Path | None) -> None:
    """Show one version (default: the live one) and the changes that concern it."""
    repository = repository or load_settings().model_repository
    version = version or read_pointer(repository).version
    model = load_version(repository, version)
    metrics = read_metrics(repository, version)
    manifest = model.manifest
    facts = {
        "version": version,
        "exported": manifest.get("created_at"),
        "git revision": manifest.get("git_revision") or "unknown",
        "trained with": f"xgboost {manifest.get('xgboost_version')}",
        "trees": manifest.get("n_trees"),
        "features": f"{len(model.contract.names)}, contract {model.contract.hash}",
        "label delay": f"{model.contract.label_delay_days} days",
        **_days(manifest.get("data_window") or metrics.get("windows") or {}),
        "own policy": _policy(model.own_policy),
        "policy in force": _policy(model.policy),
        "checksums": f"{len(manifest['artefacts'])} files match",
    }
    for name, value in {**facts, **_test_measures(metrics)}.items():
        click.echo(f"{name:18} {value}")
    for record in read_audit(repository):
        if version in _versions_of(record):
            click.echo(
                f"{record['at']}  {record['by']}: {record['action']} {record.get('why', '')}"
            )


@models.command("publish")
@click.argument("version")
@repository_option
@serving_triton_option
@why_option
def publish_command(
    version: str, repository: Path | None, triton_url: str | None, why: str
) -> None:
    """Make VERSION live: a candidate of `flagger export --candidate`, or an earlier version."""
    settings = load_settings()
    repository = repository or settings.model_repository
    triton_url = triton_url or running_triton(settings, repository)
    publish.publish_version(repository, version, triton_url=triton_url, why=why)
    click.echo(f"version {version} is live")


@models.command()
@repository_option
@serving_triton_option
@why_option
def rollback(repository: Path | None, triton_url: str | None, why: str) -> None:
    """Make the version live that was live before, with the thresholds it had."""
    settings = load_settings()
    repository = repository or settings.model_repository
    triton_url = triton_url or running_triton(settings, repository)
    version = publish.roll_back(repository, triton_url=triton_url, why=why)
    click.echo(f"version {version} is live again")


@models.command()
@click.argument("first")
@click.argument("second")
@repository_option
def compare(first: str, second: str, repository: Path | None) -> None:
    """Compare two versions: measures, training, and their decisions on the same real rows."""
    repository = repository or load_settings().model_repository
    found = compare_versions(repository, first, second)
    _print_columns([("", first, second), *((name, *told) for name, told in found.facts.items())])
    click.echo(_agreement(found))


@models.command()
@repository_option
@click.option(
    "--release", metavar="YY.MM", help="Only this Triton release; exit code 1 if refused."
)
def doctor(repository: Path | None, release: str | None) -> None:
    """Say which Triton releases refuse which file, and why.

    Exit code 1 if a release from 24.03 to 26.06 (or the one asked for) refuses something.
    """
    repository = repository or load_settings().model_repository
    if release is not None and release not in RELEASES:
        raise ConfigurationError(
            f"{release!r} is not a release this table knows: {RELEASES[0]} to {RELEASES[-1]}."
        )
    findings = [f for f in examine(repository) if release is None or release in f.releases]
    for finding in findings:
        click.echo(f"{finding.file}: {_verdict(finding)}: {finding.why}")
    if any(finding.refused for finding in findings):
        raise SystemExit(1)
    click.echo(f"nothing here is refused by Triton {release or f'{RELEASES[0]} to {RELEASES[-1]}'}")


def _versions_of(record: dict[str, Any]) -> set[str]:
    """Return the versions that a change concerns: what was and is live or tried, or whose policy.

    A version may be a digit of a threshold, so only the fields that name versions are looked at.
    """
    sides = [side for side in (record.get("from"), record.get("to")) if side]
    if any("thresholds_of" in side for side in sides):
        return {str(side["thresholds_of"]) for side in sides if "thresholds_of" in side}
    trials = [side["canary"] for side in sides if side.get("canary")]
    named = [side.get(name) for side in sides for name in ("version", "shadow")]
    return {str(name) for name in (*named, *(trial["version"] for trial in trials)) if name}


def _days(windows: dict[str, Any]) -> dict[str, str]:
    """Return the days of what was learned from and judged on; versions may lack them."""
    if not {"train_from", "train_to", "test_from", "test_to"} <= set(windows):
        return {"learned from": "unknown"}
    return {
        "learned from": f"{windows['train_from']} to {windows['train_to']}",
        "judged on": f"{windows['test_from']} to {windows['test_to']}",
    }


def _state(pointer: Pointer | None, version: str) -> str:
    if pointer is None:
        return ""
    found = ["live"] if version == pointer.version else []
    if version == pointer.shadow:
        found.append("shadow")
    if pointer.canary is not None and version == pointer.canary.version:
        found.append(f"canary {pointer.canary.share:.3g}")
    return ", ".join(found)


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    """Print lines of aligned columns, however wide: they may be piped."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _verdict(finding: Finding) -> str:
    span = f"{finding.releases[0]} to {finding.releases[-1]}"
    return f"refused, or answered wrong, by {span}" if finding.refused else f"note on {span}"


def _agreement(found: Comparison) -> str:
    if found.rows == 0:
        return "no common real rows: the trainings left no feature_sample.parquet"
    correlation = "none" if found.correlation is None else f"{found.correlation:.4f}"
    return (
        f"on {found.rows:,} real rows: same decision for {found.same_decisions:.2%}, score "
        f"correlation {correlation}, largest difference {found.largest_difference:.4f}; "
        f"flagged: {found.flagged[0]:,} by version {found.names[0]}, {found.flagged[1]:,} by "
        f"version {found.names[1]}, {found.flagged_by_both:,} by both"
    )


def _test_measures(metrics: dict[str, Any]) -> dict[str, str]:
    test = metrics.get("test", {})
    kept = ("transactions", "frauds", "roc_auc", "average_precision", "accuracy")
    return {f"test {name}": _number(test[name]) for name in kept if name in test}


def _policy(policy: Any) -> str:
    return (
        f"{policy.version}: review from {policy.review_threshold:.6f}, decline from "
        f"{policy.decline_threshold:.6f}"
    )


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
