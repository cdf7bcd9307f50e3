"""Runs a server so that it dies with the process that asked for it, even on SIGKILL.

`python launch.py PARENT_PID COMMAND...`: asks the kernel (Linux) to kill this process when its
parent ends, then becomes the command. Elsewhere it only becomes the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the command given on the command line."""
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was asked
            sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the stack's own command


if __name__ == "__main__":
    main()
