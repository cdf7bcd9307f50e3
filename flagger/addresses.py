"""Where the services are: from the settings, or from an embedded stack that runs in this folder."""

from __future__ import annotations

import json
from pathlib import Path

from flagger.errors import ConfigurationError
from flagger.settings import Settings, load_settings

__all__ = ["ADDRESS_FIELDS", "STACK_FILE", "fill_addresses", "resolve_settings"]

STACK_FILE = Path(".flagger") / "stack.json"
"""Written by `flagger up`: process ids and addresses of the embedded stack."""
ADDRESS_FIELDS = ("kafka_bootstrap_servers", "triton_url", "valkey_url")


def fill_addresses(settings: Settings, stack_file: Path = STACK_FILE) -> Settings:
    """Return the settings with every address; those that are not set are the embedded stack's.

    Raises:
        ConfigurationError: An address is missing and no embedded stack is recorded.
    """
    missing = [name for name in ADDRESS_FIELDS if getattr(settings, name) is None]
    if not missing:
        return settings
    try:
        recorded = json.loads(stack_file.read_text())["addresses"]
        found = {name: recorded[name] for name in missing}
    except FileNotFoundError:
        names = ", ".join(f"FLAGGER_{name.upper()}" for name in missing)
        raise ConfigurationError(
            f"{names}: not set, and no embedded stack runs in this folder. Start one with "
            f"`flagger up`, or set the addresses."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{stack_file} is not what `flagger up` writes ({error!r}). Stop the stack with "
            f"`flagger down` and start it again."
        ) from error
    return settings.model_copy(update=found)


def resolve_settings() -> Settings:
    """Read the settings from the environment and fill in the addresses."""
    return fill_addresses(load_settings())
