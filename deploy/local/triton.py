"""The real Triton server, with Python-based stand-ins for its FIL and ONNX Runtime backends."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from deploy.local.downloads import triton_environment
from deploy.local.server import Server, free_ports, require_free_port

__all__ = ["TritonAddresses", "start_triton", "wait_for_triton"]

BACKENDS = Path(__file__).with_name("backends")
_READY_S = 90.0


@dataclass(frozen=True, slots=True)
class TritonAddresses:
    """host:port of Triton's three doors."""

    grpc: str
    http: str
    metrics: str


def _site_packages(environment: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"


def _gather_backends(packages: Path, target: Path) -> None:
    """Lay out the backend folder: the wheel's Python backend, its stub, and the stand-ins."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(BACKENDS, target, ignore=shutil.ignore_patterns("__pycache__"))
    server = packages / "pytriton" / "tritonserver"
    python = target / "python"
    python.mkdir()
    for file in (server / "backends" / "python").iterdir():
        shutil.copy2(file, python / file.name)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for file in (server / "python_backend_stubs" / version).iterdir():
        shutil.copy2(file, python / file.name)


def _models(repository: Path) -> list[str]:
    return sorted(config.parent.name for config in repository.glob("*/config.pbtxt"))


def start_triton(home: Path, logs: Path, repository: Path) -> tuple[Server, TritonAddresses]:
    """Start a server on a model repository, which may still be empty.

    Models are under explicit control: those that are there are loaded, later ones on request.

    Raises:
        StackError: The platform has no embedded server, or its packages are not to be had.
    """
    environment = triton_environment()
    packages = _site_packages(environment)
    home.mkdir(parents=True, exist_ok=True)
    repository.mkdir(parents=True, exist_ok=True)
    _gather_backends(packages, home / "backends")
    ports = free_ports(3)
    for port in ports:
        require_free_port(port, "Triton")
    grpc, http, metrics = ports
    libraries = [
        str(packages / "nvidia_pytriton.libs"),
        str(sysconfig.get_config_var("LIBDIR")),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PATH": os.pathsep.join([str(environment / "bin"), os.environ.get("PATH", "")]),
        # The stub runs an isolated interpreter: the stand-ins add these packages themselves.
        "FLAGGER_TRITON_SITE_PACKAGES": str(packages),
        # Threads that spin while they wait would take the cores from the broker and the streamer.
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [
        str(packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository.resolve()}",
        f"--backend-directory={(home / 'backends').resolve()}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in _models(repository)),
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        f"--grpc-port={grpc}",
        f"--http-port={http}",
        f"--metrics-port={metrics}",
    ]
    server = Server("Triton", command, logs / "triton.log", environment=variables)
    addresses = (f"127.0.0.1:{port}" for port in ports)
    return server, TritonAddresses(*addresses)


def wait_for_triton(server: Server, address: str) -> None:
    """Wait until the server is ready: all models that were to be loaded answer."""
    client = triton.InferenceServerClient(address)

    def answers() -> bool:
        try:
            return bool(client.is_server_ready(client_timeout=1))
        except InferenceServerException:
            return False

    server.wait_until(answers, _READY_S)
    client.close()
