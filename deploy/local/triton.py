"""The real Triton server, with Python-based stand-ins for its FIL and ONNX Runtime backends."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from deploy.local.downloads import triton_environment
from deploy.local.server import Server, free_ports
from flagger.errors import StackError

__all__ = ["TritonAddresses", "start_triton", "wait_for_triton"]

BACKENDS = Path(__file__).with_name("backends")
_READY_S = 90.0
_ANSWER_S = 2.0
_NO_PROXY = [("grpc.enable_http_proxy", 0)]
"""gRPC would ask the proxy of HTTP_PROXY for an address of this machine, too."""


@dataclass(frozen=True, slots=True)
class TritonAddresses:
    """host:port of Triton's three doors."""

    grpc: str
    http: str
    metrics: str


def _site_packages(environment: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"


def _python_library_folder() -> str:
    """Return where Python's shared library is, which the stub loads; "" if the system finds it.

    Raises:
        StackError: This Python has none.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"):
        if folder and (Path(folder) / name).exists():
            return str(folder)
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise StackError(
            f"The embedded Triton needs {name}, and {sys.base_prefix} has none. Install the "
            f"system's package libpython{sys.version_info.major}.{sys.version_info.minor}, use a "
            f"Python that uv installed, or a Triton that runs: set FLAGGER_TRITON_URL."
        ) from error
    return ""


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


def start_triton(
    home: Path, logs: Path, repository: Path, options: Sequence[str] = ()
) -> tuple[Server, TritonAddresses]:
    """Start a server on a model repository, which may still be empty.

    Models are under explicit control: those that are there are loaded, later ones on request.

    Args:
        home: Folder of its backends.
        logs: Folder of its log.
        repository: The model repository.
        options: More of the server's own options.

    Raises:
        StackError: The platform has no embedded server, or its packages are not to be had.
    """
    environment = triton_environment()
    packages = _site_packages(environment)
    home.mkdir(parents=True, exist_ok=True)
    repository.mkdir(parents=True, exist_ok=True)
    _gather_backends(packages, home / "backends")
    ports = free_ports(3)
    grpc, http, metrics = ports
    libraries = [
        str(packages / "nvidia_pytriton.libs"),
        _python_library_folder(),
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
        "--strict-readiness=true",
        "--exit-on-error=false",  # a model that does not load is named by `wait_for_triton`
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        f"--grpc-port={grpc}",
        f"--http-port={http}",
        f"--metrics-port={metrics}",
        *options,
    ]
    server = Server("Triton", command, logs / "triton.log", environment=variables)
    addresses = (f"127.0.0.1:{port}" for port in ports)
    return server, TritonAddresses(*addresses)


def wait_for_triton(server: Server, address: str) -> None:
    """Wait until the server is ready: all models that were to be loaded answer.

    Raises:
        StackError: It ended, took too long, or a model did not load.
    """
    client = triton.InferenceServerClient(address, channel_args=_NO_PROXY)

    def answers() -> bool:
        try:
            if client.is_server_ready(client_timeout=_ANSWER_S):
                return True
            if client.is_server_live(client_timeout=_ANSWER_S):
                _require_loaded(client)
        except InferenceServerException:
            pass
        return False

    try:
        server.wait_until(answers, _READY_S)
    finally:
        client.close()


def _require_loaded(client: Any) -> None:
    """Raise StackError if the server has given up on a model."""
    index = client.get_model_repository_index(as_json=True, client_timeout=_ANSWER_S)
    for model in index.get("models", []):
        if model.get("state") == "UNAVAILABLE":
            reason = model.get("reason", "no reason given").split("\n\nAt:")[0]
            raise StackError(
                f"Triton could not load {model['name']} version {model.get('version', '?')}: "
                f"{reason}. Correct it, or take its folder out of the model repository."
            )
