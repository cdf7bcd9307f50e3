"""What the gateway talks to: Valkey, Triton and Kafka, made together and closed together."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from tritonclient.utils import InferenceServerException

from flagger.decision_table import DecisionTable
from flagger.errors import (
    ConfigurationError,
    ModelError,
    ModelUnavailableError,
    StateStoreError,
)
from flagger.features import FEATURE_NAMES
from flagger.models import live_version
from flagger.settings import Settings
from flagger.triton import AsyncScorer, ModelName, Scorer
from gateway.live import LiveModel, Serving
from gateway.lookup import ArchivedDecisions, DecisionLookup, RecentDecisions
from gateway.micro_batch import MicroBatcher
from gateway.ports import Log, ModelScorer
from gateway.producer import TransactionLog
from gateway.state import AsyncStateStore

__all__ = ["PROBE_TIMEOUT_S", "Backends", "GatewayScorer", "connect"]

PROBE_TIMEOUT_S = 1.0
"""Limit of each readiness check; they run side by side."""

logger = logging.getLogger(__name__)


class GatewayScorer(AsyncScorer):
    """The core's scorer, and whether the server itself lives."""

    async def is_live(self) -> bool:
        """Return True if the server answers, whatever models it has."""
        try:
            return bool(await self._client.is_server_live(client_timeout=PROBE_TIMEOUT_S))
        except InferenceServerException:
            return False


@dataclass(frozen=True)
class Backends:
    """The connections of one gateway process.

    Attributes:
        state: Valkey.
        scorer: Triton.
        log: Kafka.
        live: The live model.
        archive: Where decisions are that Valkey no longer has; None: nowhere.
        background: Triton for what no answer waits for, beside the batches of live rows; None:
            nothing is asked so.
    """

    state: AsyncStateStore
    scorer: ModelScorer
    log: Log
    live: LiveModel
    archive: DecisionLookup | None = None
    background: ModelScorer | None = None

    def lookups(self) -> list[DecisionLookup]:
        """Return where decisions are looked up, in this order."""
        recent = RecentDecisions(self.state)
        return [recent] if self.archive is None else [recent, self.archive]

    async def close(self) -> None:
        """Finish writes under way, then close everything."""
        await self.log.close()
        await self.scorer.close()
        if self.background is not None:
            await self.background.close()
        await self.state.close()
        if self.archive is not None:
            await self.archive.close()


async def connect(settings: Settings) -> Backends:
    """Make the connections on the running loop; services that are down now may come later.

    Raises:
        ConfigurationError: An address is missing, or the live model does not fit this code.
    """
    if settings.triton_url is None or settings.valkey_url is None:
        raise ConfigurationError(
            "The gateway needs FLAGGER_TRITON_URL, FLAGGER_VALKEY_URL and "
            "FLAGGER_KAFKA_BOOTSTRAP_SERVERS: set them, or start it with `flagger gateway` in a "
            "folder where `flagger up` runs."
        )
    repository, url = settings.model_repository, settings.triton_url
    version = live_version(repository)
    serving = await asyncio.to_thread(Serving.load, repository, settings.gateway_model, version)
    scorer = MicroBatcher(GatewayScorer(url))

    async def accept(candidate: Serving) -> None:
        await asyncio.to_thread(_check_model, url, candidate.model)

    try:
        await accept(serving)
    except ModelError as error:
        logger.warning("Starting without the model, /readyz will say so: %s", error)
    state = AsyncStateStore(settings.valkey_url)
    try:
        await state.ping(PROBE_TIMEOUT_S * 1000)
    except StateStoreError as error:
        logger.warning("Starting without the state, /readyz will say so: %s", error)
    return Backends(
        state,
        scorer,
        TransactionLog(settings),
        LiveModel(serving, repository, accept),
        await asyncio.to_thread(_archive, settings),
        GatewayScorer(url),
    )


def _archive(settings: Settings) -> ArchivedDecisions | None:
    if settings.decision_table is None:
        return None
    return ArchivedDecisions(
        DecisionTable(settings.decision_table, region=settings.decision_table_region)
    )


def _check_model(url: str, model: ModelName) -> None:
    """Raise ModelError unless the version is served, ConfigurationError if its shape is wrong."""
    probe = Scorer(url, timeout_ms=int(PROBE_TIMEOUT_S * 1000))
    try:
        if not probe.is_ready(model):
            raise ModelUnavailableError(
                f"Triton at {url} does not serve {model.name} version {model.version} (yet)."
            )
        probe.check_shape(model, len(FEATURE_NAMES))
    finally:
        probe.close()
