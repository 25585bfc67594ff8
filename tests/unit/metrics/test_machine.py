"""Readings of the machine, on the machine the test runs on."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import clock
from agent.metrics import machine
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
    Metric,
)
from agent.metrics.reading import CounterValue, GaugeValue
from agent.metrics.registry import Metrics


def values(metrics: Metrics) -> dict[tuple[Metric, tuple[str, ...]], float]:
    """Every gauge and counter by metric and labels."""
    return {
        (it.metric, it.labels): it.value if isinstance(it, GaugeValue) else it.total
        for it in metrics.snapshot()
        if isinstance(it, GaugeValue | CounterValue)
    }


def test_machine_and_agent_are_read(tmp_path: Path) -> None:
    metrics = Metrics()
    machine.read(metrics, {"workspace": tmp_path, "state": tmp_path})
    deadline = clock.Deadline.after(10)
    while (SERVER_CPU, ()) not in values(metrics):  # until the kernel's tick has moved on
        assert not deadline.is_passed
        machine.read(metrics, {"workspace": tmp_path, "state": tmp_path})
    found = values(metrics)
    assert 0 <= found[SERVER_CPU, ()] <= 100
    assert found[SERVER_LOAD, ()] >= 0
    assert found[MEMORY_USED, ()] > 0
    assert found[MEMORY_AVAILABLE, ()] > 0
    assert found[AGENT_RSS, ()] > 1 << 20
    assert found[AGENT_CPU, ()] > 0
    assert found[AGENT_THREADS, ()] >= threading.active_count()
    assert found[AGENT_DESCRIPTORS, ()] >= 3
    disk = os.statvfs(tmp_path)
    for place in ("workspace", "state"):
        assert 0 < found[DISK_FREE, (place,)] <= disk.f_blocks * disk.f_frsize


def test_vanished_directory_takes_its_own_readings_away_only(tmp_path: Path) -> None:
    metrics = Metrics()
    workspace = tmp_path / "workspaces"
    workspace.mkdir()
    paths = {"workspace": workspace, "state": tmp_path}
    machine.read(metrics, paths)
    assert (DISK_FREE, ("workspace",)) in values(metrics)
    workspace.rmdir()
    machine.read(metrics, paths)
    found = values(metrics)
    assert (DISK_FREE, ("workspace",)) not in found
    assert (DISK_FREE_INODES, ("workspace",)) not in found
    assert (DISK_FREE, ("state",)) in found
    workspace.mkdir()
    machine.read(metrics, paths)
    assert (DISK_FREE, ("workspace",)) in values(metrics)


def test_file_system_without_a_number_of_inodes_has_none_not_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    machine.read(metrics, {"workspace": tmp_path})
    btrfs = SimpleNamespace(f_bavail=5, f_frsize=4096, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _path: btrfs)
    machine.read(metrics, {"workspace": tmp_path})
    found = values(metrics)
    assert found[DISK_FREE, ("workspace",)] == 5 * 4096
    assert (DISK_FREE_INODES, ("workspace",)) not in found
