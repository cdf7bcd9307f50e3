"""CPU time and memory of processes, as the system's own account has them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

import psutil

__all__ = ["CpuClock", "memory_mib", "others_cpu_s"]


class CpuClock:
    """Counts from now on what processes use; their child processes belong to them.

    Args:
        pids: Name -> process id. Its own process counts without its children, who have a name of
            their own or none.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before_s, self._start_s = self._now_s(), time.monotonic()

    def used_s(self) -> dict[str, float]:
        """Return name -> seconds of CPU since the start."""
        return {name: now_s - self._before_s[name] for name, now_s in self._now_s().items()}

    def cores(self) -> dict[str, float]:
        """Return name -> cores kept busy on average since the start."""
        elapsed_s = time.monotonic() - self._start_s
        return {name: used_s / elapsed_s for name, used_s in self.used_s().items()}

    def _now_s(self) -> dict[str, float]:
        found = {}
        for name, pid in self._pids.items():
            process = psutil.Process(pid)
            found[name] = _cpu_s(process) + (
                0.0 if pid == os.getpid() else _childrens_cpu_s(process)
            )
        return found


def others_cpu_s() -> float:
    """Return the CPU time that this machine has spent on anything but us and our processes."""
    machine, me = psutil.cpu_times(), psutil.Process()
    busy_s: float = sum(machine[:3]) + sum(machine[5:8])  # without idle and waiting for disks
    mine = me.cpu_times()
    ended_s: float = mine.children_user + mine.children_system
    return busy_s - _cpu_s(me) - ended_s - _childrens_cpu_s(me)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _childrens_cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of the child processes, theirs included, that have not ended."""
    used_s = 0.0
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            used_s += _cpu_s(child)
    return used_s


def memory_mib(pid: int) -> float:
    """Return the memory that a process holds, MiB; its child processes count for themselves."""
    return float(psutil.Process(pid).memory_info().rss) / 2**20
