"""New thresholds for a published version, without training or publishing it again."""

from __future__ import annotations

from pathlib import Path

from flagger.errors import ConfigurationError
from flagger.models import load_version
from flagger.pointer import MAX_POLICIES, PolicyHistory, change_pointer
from flagger.policy import Policy

__all__ = ["roll_back_policy", "set_policy"]


def set_policy(
    repository: Path,
    review: float,
    decline: float,
    *,
    version: str | None = None,
    why: str = "",
    by: str | None = None,
) -> tuple[str, Policy]:
    """Put new thresholds in force; the doors follow without a restart.

    Args:
        repository: The model repository.
        review: A score from here on goes to a person.
        decline: A score from here on is declined.
        version: The model version; None: the live one.
        why: The reason, for the audit.
        by: Who, for the audit; None: the user that runs the process.

    Returns:
        The model version, and its new policy: named "<name of its own policy>.<number>".

    Raises:
        ConfigurationError: Thresholds out of order, or no such version.
    """
    with change_pointer(repository, "policy set", why=why, by=by) as change:
        if change.before is None:
            raise ConfigurationError(
                f"No model version is live in {repository}: publish one with `flagger export`."
            )
        version = version or change.before.version
        model = load_version(repository, version)
        history = change.before.policies_of(version)
        number = 1 + max((int(p.version.rpartition(".")[2]) for p in history.policies), default=0)
        policy = Policy(f"{model.own_policy.version}.{number}", review, decline)
        change.after = change.before.with_policies(version, history.with_policy(policy))
        change.details_before = {"thresholds_of": version, **model.policy.to_dict()}
        change.details_after = {"thresholds_of": version, **policy.to_dict()}
    return version, policy


def roll_back_policy(
    repository: Path, *, version: str | None = None, why: str = "", by: str | None = None
) -> tuple[str, Policy]:
    """Put the thresholds in force that the present ones replaced; return version and policy.

    Raises:
        ConfigurationError: The version's own thresholds are in force, or the earlier ones are
            remembered by the audit only.
    """
    with change_pointer(repository, "policy rollback", why=why, by=by) as change:
        if change.before is None:
            raise ConfigurationError(f"No model version is live in {repository}.")
        version = version or change.before.version
        model = load_version(repository, version)
        history = change.before.policies_of(version)
        if history.in_force is None:
            raise ConfigurationError(
                f"Model version {version} decides by its own thresholds (policy "
                f"{model.own_policy.version}): there is nothing to go back to. New ones: `flagger "
                f"policy set`."
            )
        replaced = history.replaced[history.in_force]
        earlier = PolicyHistory(replaced, history.policies, history.replaced)
        if replaced is not None and earlier.current is None:
            raise ConfigurationError(
                f"Policy {replaced} of model version {version} is too long ago: the pointer keeps "
                f"{MAX_POLICIES}. `flagger policy show` has its thresholds, `flagger policy set` "
                f"puts them in force again."
            )
        policy = earlier.current or model.own_policy
        change.after = change.before.with_policies(version, earlier)
        change.details_before = {"thresholds_of": version, **model.policy.to_dict()}
        change.details_after = {"thresholds_of": version, **policy.to_dict()}
    return version, policy
