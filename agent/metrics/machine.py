"""Readings of the machine and of the agent's own process.

A thing that can't be read takes its series away for as long as it can't: an old number would be a lie.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

from agent import log
from agent.metrics.catalogue import (
    AGENT_CPU,
    AGENT_DESCRIPTORS,
    AGENT_RSS,
    AGENT_THREADS,
    DISK_FREE,
    DISK_FREE_INODES,
    MEMORY_AVAILABLE,
    MEMORY_USED,
    SERVER_CPU,
    SERVER_LOAD,
)
from agent.metrics.registry import Metrics

_log = log.get(__name__)


class _CpuMeter:
    """Measure how busy the processors were between two looks.

    psutil's own `cpu_percent` keeps a state per thread and answers 0.0 at a thread's first look: a lie that
    every restart of the agent would draw into the graphs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[float, float] | None = None

    def percent(self) -> float | None:
        """Return 0 to 100, None at the first look and when no time has passed."""
        times = psutil.cpu_times()
        # guest and guest_nice are counted in user and nice already (proc(5)).
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        # Time stolen by the hypervisor is not idle: the build waits for it just the same.
        idle = times.idle + getattr(times, "iowait", 0.0)
        with self._lock:
            last, self._last = self._last, (total, idle)
        if last is None or total <= last[0]:
            return None
        # The kernel's idle and iowait may step back a little (proc(5)).
        return min(100.0, max(0.0, 100.0 * (1.0 - (idle - last[1]) / (total - last[0]))))


_CPU = _CpuMeter()


def read(metrics: Metrics, paths: Mapping[str, Path]) -> None:
    """Read machine, agent and file systems once; takes about a millisecond.

    Args:
        paths: what to call a directory (the label `place`) and where it is: {"workspace": ..., "state": ...}.
    """
    _read_machine(metrics)
    _read_process(metrics)
    for place, path in paths.items():
        _read_disk(metrics, place, path)


def _read_machine(metrics: Metrics) -> None:
    try:
        percent = _CPU.percent()
        if percent is not None:
            metrics.set(SERVER_CPU, percent)
        metrics.set(SERVER_LOAD, os.getloadavg()[0])
        memory = psutil.virtual_memory()
    except (OSError, psutil.Error) as error:  # /proc hidden or half there, as in some containers
        _log.debug("metrics.unread", "the machine: %s", error)
        for gauge in (SERVER_CPU, SERVER_LOAD, MEMORY_USED, MEMORY_AVAILABLE):
            metrics.forget(gauge)
        return
    metrics.set(MEMORY_USED, memory.used)
    metrics.set(MEMORY_AVAILABLE, memory.available)


def _read_process(metrics: Metrics) -> None:
    try:
        process = psutil.Process()
        with process.oneshot():
            metrics.set(AGENT_RSS, process.memory_info().rss)
            times = process.cpu_times()
            metrics.set_total(AGENT_CPU, times.user + times.system)
            metrics.set(AGENT_THREADS, process.num_threads())
            metrics.set(AGENT_DESCRIPTORS, process.num_fds())
    except (OSError, psutil.Error) as error:  # counting descriptors needs one: at the limit this fails
        _log.debug("metrics.unread", "the agent's process: %s", error)
        for gauge in (AGENT_RSS, AGENT_THREADS, AGENT_DESCRIPTORS):
            metrics.forget(gauge)


def _read_disk(metrics: Metrics, place: str, path: Path) -> None:
    try:
        disk = os.statvfs(path)
    except OSError as error:  # not mounted yet, unmounted, stale, or failing
        _log.debug("metrics.unread", "%s (%s): %s", place, path, error.strerror)
        metrics.forget(DISK_FREE, place=place)
        metrics.forget(DISK_FREE_INODES, place=place)
        return
    metrics.set(DISK_FREE, disk.f_bavail * disk.f_frsize, place=place)
    if disk.f_files:
        metrics.set(DISK_FREE_INODES, disk.f_favail, place=place)
    else:
        # btrfs and others make inodes as they need them and say 0 of 0: not "none left".
        metrics.forget(DISK_FREE_INODES, place=place)
