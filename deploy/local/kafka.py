"""Apache Kafka as one process: broker and controller in KRaft mode."""

from __future__ import annotations

import os
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.local.downloads import find_java, kafka_jars
from deploy.local.server import Server, free_ports
from flagger.errors import StackError

__all__ = ["start_kafka", "wait_for_kafka"]

_HEAP = "512m"
_FORMAT_TIMEOUT_S = 60
_READY_S = 60.0
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
_LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.start.name = kafka.server
logger.start.level = info
"""


def _properties(
    folder: Path, port: int, controller_port: int, changes: Mapping[str, object]
) -> str:
    values: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": folder / "data",
        "auto.create.topics.enable": "false",
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "log.retention.ms": -1,
        # One broker: one copy of everything, one partition for the internal topics.
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # After a crash the controller takes the new broker for a second one until the old one's
        # session ends; the default of 9 s is for networks.
        "broker.session.timeout.ms": 4_000,
        "broker.heartbeat.interval.ms": 500,
        # Each transaction commits offsets; gathering them for 5 ms would cost it that long.
        "group.coordinator.append.linger.ms": 0,
        # A single streamer need not wait for others to join.
        "group.initial.rebalance.delay.ms": 0,
    }
    for name, value in changes.items():
        # Lists grow: a further listener does not replace the one that the broker itself needs.
        grows = name in ("listeners", "advertised.listeners", "listener.security.protocol.map")
        values[name] = f"{values[name]},{value}" if grows else value
    return "".join(f"{name}={value}\n" for name, value in values.items())


def start_kafka(
    home: Path,
    logs: Path,
    *,
    changes: Mapping[str, object] | None = None,
    scram_users: Sequence[str] = (),
) -> tuple[Server, str]:
    """Start a broker with its data below `home`; return it and its plaintext address.

    Args:
        home: Folder of its data.
        logs: Folder of its log.
        changes: Further broker settings; listeners are added to ours.
        scram_users: Users to create with new storage, as Kafka's `--add-scram` reads them.

    Raises:
        StackError: No Java, no jars, no port, or the storage could not be prepared.
    """
    java, jars = find_java(), kafka_jars()
    home.mkdir(parents=True, exist_ok=True)
    port, controller_port = free_ports(2)
    config = home / "server.properties"
    config.write_text(_properties(home, port, controller_port, changes or {}))
    logging = home / "log4j2.properties"
    logging.write_text(_LOGGING)
    base = [
        java,
        f"-Xmx{_HEAP}",
        "-XX:+UseSerialGC",
        # A broker that lives for minutes on two cores pays more for the second compiler than the
        # second compiler gives back.
        "-XX:TieredStopAtLevel=1",
        f"-Dlog4j2.configurationFile={logging}",
        "-cp",
        os.pathsep.join(map(str, jars)),
    ]
    if not (home / "data" / "meta.properties").exists():
        # Any 16 bytes will do; a leading "-" would be taken for an option.
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        users = [part for user in scram_users for part in ("--add-scram", user)]
        command = [*base, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)]
        command += users
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_S)
        if done.returncode:
            raise StackError(
                f"Kafka's storage in {home} could not be prepared: "
                f"{(done.stderr or done.stdout).strip()[-1500:]}"
            )
    server = Server("Kafka", [*base, "kafka.Kafka", str(config)], logs / "kafka.log")
    return server, f"127.0.0.1:{port}"


def wait_for_kafka(server: Server, address: str) -> None:
    """Wait until the broker answers."""
    quiet = {"bootstrap.servers": address, "log_level": 0, "logger": None}
    admin = AdminClient({k: v for k, v in quiet.items() if v is not None})

    def answers() -> bool:
        try:
            return bool(admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    server.wait_until(answers, _READY_S)
