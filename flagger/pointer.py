"""`live.json`, the pointer that the doors follow, and `audit.jsonl`, who moved it and why.

    live.json     version     the model version that the doors ask for
                  since       when it became live, RFC 3339
                  previous    versions that were live before, the latest first
                  shadow      version that scores beside it and decides nothing; absent: none
                  canary      version, share and since of the one that decides a share; absent: none
                  policies    by model version: thresholds that were set after publishing, and which
                              of them are in force (null: the version's own policy.json)
    audit.jsonl   one line per change: at, by, action, from, to, why; only ever appended to

Thresholds belong to a model version: rolling back to a version brings its thresholds back too.
Both files change under a lock on the folder. The audit line is written first: after a crash in
between, it tells of a change that did not happen, and the next line's `from` shows that.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flagger.audit import AUDIT_FILE, append_record, read_audit
from flagger.canary import Canary
from flagger.errors import ConfigurationError
from flagger.files import exclusive, write_atomically
from flagger.policy import Policy

__all__ = [
    "AUDIT_FILE",
    "POINTER_FILE",
    "Pointer",
    "PolicyHistory",
    "change_pointer",
    "in_force",
    "now",
    "read_audit",
    "read_pointer",
]

POINTER_FILE = "live.json"
MAX_PREVIOUS = 20
"""Most earlier live versions that the pointer remembers for rolling back."""
MAX_POLICIES = 50
"""Most changes of thresholds per version that the pointer remembers; the audit has all."""


@dataclass(frozen=True)
class PolicyHistory:
    """Thresholds of one model version that were set after it was published.

    Attributes:
        in_force: Name of the ones in force; None: the version's own policy.json.
        policies: All of them, oldest first.
        replaced: By name, what was in force when they were set; None as above.
    """

    in_force: str | None = None
    policies: tuple[Policy, ...] = ()
    replaced: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def current(self) -> Policy | None:
        """The policy in force; None: the version's own."""
        return next((p for p in self.policies if p.version == self.in_force), None)

    def with_policy(self, policy: Policy) -> PolicyHistory:
        """Return the history with one more policy, in force; the one that it replaces is kept."""
        kept = (*self.policies, policy)[-MAX_POLICIES:]
        if self.current is not None and self.current not in kept:
            kept = (self.current, *kept[1:])
        replaced = {p.version: self.replaced.get(p.version) for p in kept}
        return PolicyHistory(policy.version, kept, replaced | {policy.version: self.in_force})


@dataclass(frozen=True)
class Pointer:
    """The content of live.json.

    Attributes:
        version: The live model version.
        previous: Versions that were live before, the latest first.
        policies: By model version.
        since: When the version became live, RFC 3339.
        shadow: Version that scores beside the live one.
        canary: Version that decides a share of the customers.
    """

    version: str
    previous: tuple[str, ...] = ()
    policies: Mapping[str, PolicyHistory] = field(default_factory=dict)
    since: str = ""
    shadow: str | None = None
    canary: Canary | None = None

    @property
    def trials(self) -> tuple[str, ...]:
        """Versions that are tried beside the live one."""
        return tuple(v for v in (self.shadow, self.canary and self.canary.version) if v)

    @property
    def key(self) -> tuple[str, str | None]:
        """Model version and policy in force: what is not equal must be loaded again."""
        return self.version, self.policies_of(self.version).in_force

    def policies_of(self, version: str) -> PolicyHistory:
        """Return a version's policies; an empty history if none were set."""
        return self.policies.get(version, PolicyHistory())

    def moved_to(self, version: str) -> Pointer:
        """Return the pointer to another version.

        Going to a version that was live before forgets those that came after it, so that rolling
        back twice goes back two versions. Trials end: they compare with what was live.
        """
        previous = (self.version, *self.previous)
        if version in previous:
            previous = previous[previous.index(version) + 1 :]
        moved = replace(self, version=version, previous=previous[:MAX_PREVIOUS], since=now())
        return replace(moved, shadow=None, canary=None)

    def with_policies(self, version: str, history: PolicyHistory) -> Pointer:
        """Return the pointer with another policy history of one version."""
        return replace(self, policies={**self.policies, version: history})


def read_pointer(repository: Path) -> Pointer:
    """Read live.json; cheap enough to poll every second.

    Raises:
        ConfigurationError: There is no pointer, or it is not readable.
    """
    path = repository / POINTER_FILE
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist, so no model version is live. Run `flagger export` to publish "
            f"a trained model."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as a pointer to a model version ({error!r}). Remove it and "
            f"publish a model with `flagger export`."
        ) from error


def in_force(repository: Path, version: str) -> Policy | None:
    """Return the policy that was set for a version after it was published; None: its own."""
    if not (repository / POINTER_FILE).exists():
        return None
    return read_pointer(repository).policies_of(version).current


@contextmanager
def change_pointer(
    repository: Path, action: str, *, why: str = "", by: str | None = None
) -> Iterator[_Change]:
    """Change the pointer while nobody else does; the change counts when the block ends well.

    Args:
        repository: The model repository.
        action: What is done, for the audit: `publish`, `rollback`, `policy set`, ...
        why: The reason, for the audit.
        by: Who; None: the user that runs the process.

    Yields:
        An object with the pointer as it is (`before`) and as it is to be (`after`).

    Raises:
        ConfigurationError: The repository is not there, or cannot be written.
    """
    try:
        with exclusive(repository):
            exists = (repository / POINTER_FILE).exists()
            change = _Change(read_pointer(repository) if exists else None)
            yield change
            if change.after is None:
                return
            record = {
                "at": now(),
                "by": by or _user(),
                "action": action,
                "from": _told(change.before, change.details_before),
                "to": _told(change.after, change.details_after),
                "why": why,
            }
            append_record(repository, record)
            text = json.dumps(_to_json(change.after), indent=2) + "\n"
            write_atomically(repository / POINTER_FILE, text)
    except OSError as error:
        raise ConfigurationError(
            f"The pointer in {repository} cannot be changed: {error}. Check the repository's path, "
            f"permissions and free space."
        ) from error


@dataclass
class _Change:
    before: Pointer | None
    after: Pointer | None = None
    details_before: dict[str, Any] = field(default_factory=dict)
    details_after: dict[str, Any] = field(default_factory=dict)


def _told(pointer: Pointer | None, details: Mapping[str, Any]) -> dict[str, Any] | None:
    if pointer is None:
        return None
    version, policy = pointer.key
    return {"version": version, "policy": policy, **details}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def now() -> str:
    """Return the time as audit and pointer have it, RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _to_json(pointer: Pointer) -> dict[str, Any]:
    policies = {
        version: {
            "in_force": history.in_force,
            "set": [
                {**policy.to_dict(), "replaced": history.replaced.get(policy.version)}
                for policy in history.policies
            ],
        }
        for version, history in pointer.policies.items()
    }
    trials: dict[str, Any] = {}
    if pointer.shadow is not None:
        trials["shadow"] = pointer.shadow
    if pointer.canary is not None:
        trials["canary"] = asdict(pointer.canary)
    return {
        "version": pointer.version,
        "since": pointer.since,
        "previous": list(pointer.previous),
        **trials,
        "policies": policies,
    }


def _from_json(data: dict[str, Any]) -> Pointer:
    policies = {}
    for version, history in data.get("policies", {}).items():
        kept = tuple(Policy.from_dict(item) for item in history["set"])
        replaced = {item["policy_version"]: item["replaced"] for item in history["set"]}
        policies[str(version)] = PolicyHistory(history["in_force"], kept, replaced)
        if history["in_force"] is not None and policies[str(version)].current is None:
            raise ValueError(f"no policy {history['in_force']!r} of version {version}")
    return Pointer(
        version=str(data["version"]),
        previous=tuple(str(version) for version in data["previous"]),
        policies=policies,
        since=str(data.get("since", "")),
        shadow=str(data["shadow"]) if "shadow" in data else None,
        canary=Canary(**data["canary"]) if "canary" in data else None,
    )
