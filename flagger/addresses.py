"""Where the services are: from the settings, or from an embedded stack that runs in this folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from flagger.errors import ConfigurationError
from flagger.settings import Settings, load_settings

__all__ = [
    "ADDRESS_FIELDS",
    "STACK_FILE",
    "fill_addresses",
    "resolve_kafka_settings",
    "resolve_settings",
]

STACK_FILE = Path(".flagger") / "stack.json"
"""Written by `flagger up`: process ids and addresses of the embedded stack."""
ADDRESS_FIELDS = ("kafka_bootstrap_servers", "triton_url", "valkey_url")


def fill_addresses(settings: Settings, stack_file: Path = STACK_FILE) -> Settings:
    """Return the settings with every address; those that are not set are the embedded stack's.

    Raises:
        ConfigurationError: An address is missing and no embedded stack runs that has it.
    """
    missing = [name for name in ADDRESS_FIELDS if getattr(settings, name) is None]
    if not missing:
        return settings
    try:
        record = json.loads(stack_file.read_text())
        owner = int(record["owner"]["pid"])
        found = {name: str(record["addresses"][name]) for name in missing}
    except FileNotFoundError:
        raise ConfigurationError(
            f"{_variables(missing)}: not set, and no embedded stack runs in this folder. Start one "
            f"with `flagger up`, or set the addresses."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{stack_file} is not what `flagger up` writes ({error!r}). Remove it once none of the "
            f"stack's processes runs any more, and start it again with `flagger up`."
        ) from error
    if not _runs(owner):
        raise ConfigurationError(
            f"The embedded stack that {stack_file} tells of did not end well: its process {owner} "
            f"is gone. Start it again with `flagger up`, clear up with `flagger down`, or set "
            f"{_variables(missing)}."
        )
    if unknown := [name for name in missing if not found[name]]:
        raise ConfigurationError(
            f"{_variables(unknown)}: not set, and the embedded stack of this folder does not have "
            f"that service. Stop it and start a whole one with `flagger up`, or set the address."
        )
    return settings.model_copy(update=found)


def resolve_settings() -> Settings:
    """Read the settings from the environment and fill in the addresses."""
    return fill_addresses(load_settings())


def resolve_kafka_settings() -> Settings:
    """The same for what needs neither Triton nor Valkey: a Kafka that is set is enough."""
    settings = load_settings()
    return settings if settings.kafka_bootstrap_servers else fill_addresses(settings)


def _variables(names: Iterable[str]) -> str:
    return ", ".join(f"FLAGGER_{name.upper()}" for name in names)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
