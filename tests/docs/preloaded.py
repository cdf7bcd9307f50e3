"""A `flagger` whose modules are loaded already: commands of pages start in milliseconds.

`preloaded.py serve SOCKET` imports what commands need and waits. `preloaded.py run SOCKET ...` is
`flagger ...`: the server forks a process, which gets the caller's streams, folder and variables and
runs the same `main` as the real program.
"""

import array
import json
import os
import signal
import socket
import sys
import time
from typing import Any

HEAVY = (
    "train.cli", "train.simulate_cli", "train.retrain_cli", "train.rules_cli", "train.drift_cli",
    "train.evaluate_cli", "train.drift_check_cli", "export.cli", "export.models_cli",
    "export.policy_cli", "gateway.cli",
    "streamer.cli", "streamer.produce_cli", "streamer.dead_letters_cli", "deploy.backup_cli",
    "deploy.scaling_cli", "grafana.cli", "review.store", "sklearn.metrics",
    "train.drift_check_cli",
)  # fmt: skip
LENGTH_BYTES = 4


def serve(path: str) -> None:
    """Answer each connection by a process of its own, until SIGTERM."""
    import importlib

    for name in HEAVY:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child's status is asked for here
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)  # there is one only when it listens
        while True:
            caller, _ = listening.accept()
            with caller:
                if os.fork() == 0:
                    listening.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    run(caller)


def run(caller: socket.socket) -> None:
    """Be `flagger`, for the one who called; tell the process id first and the status at the end."""
    from flagger.cli import main

    sizes = socket.CMSG_LEN(3 * array.array("i").itemsize)
    head, streams, _, _ = caller.recvmsg(LENGTH_BYTES, sizes)
    job = json.loads(caller.makefile("rb").read(int.from_bytes(head, "big")))
    for number, stream in enumerate(array.array("i", streams[0][2])):
        os.dup2(stream, number)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["variables"])
    sys.argv = ["flagger", *job["arguments"]]
    caller.sendall(b"%d\n" % os.getpid())
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    caller.sendall(b"%d\n" % status)
    os._exit(status)  # threads that were not forked cannot be waited for


def call(path: str, arguments: list[str]) -> int:
    """Have `flagger` run with our streams; return its status. SIGTERM goes on to it."""
    job = {"arguments": arguments, "folder": os.getcwd(), "variables": dict(os.environ)}
    content = json.dumps(job).encode()
    with socket.socket(socket.AF_UNIX) as server:
        while not os.path.exists(path):  # it still loads; who tests has set a limit
            time.sleep(0.05)
        server.connect(path)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))
        server.sendmsg([len(content).to_bytes(LENGTH_BYTES, "big")], [rights])
        server.sendall(content)
        answers = server.makefile()
        pid = int(answers.readline())

        def pass_on(number: int, _frame: Any) -> None:
            os.kill(pid, number)

        signal.signal(signal.SIGTERM, pass_on)
        return int(answers.readline() or 1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[2], sys.argv[3:]))
