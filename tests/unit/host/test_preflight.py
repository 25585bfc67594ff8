"""Reasons not to take a build: on real file systems, with a made-up meminfo and settable probes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent import clock
from agent.config import Settings
from agent.host.preflight import Preflight, Probes

GIB = 1 << 30
MIB = 1 << 20


@dataclass
class Machine:
    """A machine whose every reading the test sets; what it says of itself is healthy at first."""

    root: Path
    database_skew_s: float | None = 0.0
    redis_skew_s: float | None = 0.0
    spool_bytes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("state", "state/workspaces", "state/spool"):
            (self.root / name).mkdir(exist_ok=True)
        self.set_memory(GIB)
        self.settings = {"min_free_bytes": 0, "min_free_inodes": 0, "state_dir": self.root / "state"}

    def set_memory(self, available: int) -> None:
        text = f"MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   {available // 1024} kB\nBuffers: 5 kB\n"
        (self.root / "meminfo").write_text(text)

    def preflight(self, *, cache_s: float = 0, **settings: object) -> Preflight:
        probes = Probes(
            database_skew_s=lambda: self.database_skew_s,
            redis_skew_s=lambda: self.redis_skew_s,
            spool_bytes=lambda: self.spool_bytes,
        )
        chosen = Settings(**{**self.settings, **settings})
        return Preflight(chosen, probes, cache_s=cache_s, meminfo=self.root / "meminfo")


@pytest.fixture
def box(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a real file system of 1 MiB and 64 inodes."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs root to mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "preflight-test", str(path)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def codes(preflight: Preflight) -> list[str]:
    return [reason.code for reason in preflight.check()]


def test_healthy_machine_has_no_reason(box: Machine) -> None:
    assert box.preflight().check() == []


def test_full_disk_is_one_reason_for_all_its_directories(box: Machine) -> None:
    reasons = box.preflight(min_free_bytes=1 << 60).check()
    assert [reason.code for reason in reasons] == ["disk"]
    for part in ("GiB free", "limit 1073741824.0 GiB", "workspaces, spool, state", "larger disk"):
        assert part in reasons[0].text


def test_few_inodes_are_a_reason(box: Machine) -> None:
    reasons = box.preflight(min_free_inodes=10**15).check()
    assert [reason.code for reason in reasons] == ["inodes"]
    assert "limit 1000000000000000" in reasons[0].text


@pytest.mark.root
def test_each_full_file_system_alone_is_a_reason_and_recovers(box: Machine, small_disk: Path) -> None:
    healthy = box.settings
    for name in ("workspace_dir", "spool_dir"):
        box.settings = {**healthy, name: small_disk}
        preflight = box.preflight(min_free_bytes=MIB // 2)
        assert codes(preflight) == []
        (small_disk / "ballast").write_bytes(b"x" * (MIB * 3 // 4))
        (reason,) = preflight.check()
        assert reason.code == "disk"
        assert str(small_disk) in reason.text
        (small_disk / "ballast").unlink()
        assert codes(preflight) == []


@pytest.mark.root
def test_disk_recovers_only_a_tenth_above_its_limit(box: Machine, small_disk: Path) -> None:
    preflight = box.preflight(workspace_dir=small_disk, min_free_bytes=100 * 4096)
    ballast = small_disk / "ballast"
    seen = []
    for free_pages in (105, 99, 105, 109, 111, 105, 99):
        ballast.write_bytes(b"x" * ((256 - free_pages) * 4096))
        seen.append(bool(preflight.check()))
    assert seen == [False, True, True, True, False, False, True]


@pytest.mark.root
def test_used_up_inodes_are_a_reason(box: Machine, small_disk: Path) -> None:
    preflight = box.preflight(spool_dir=small_disk, min_free_inodes=20)
    assert codes(preflight) == []
    for number in range(50):
        (small_disk / str(number)).touch()
    assert codes(preflight) == ["inodes"]


@pytest.mark.root
def test_disk_turned_read_only_is_a_reason(box: Machine, small_disk: Path) -> None:
    preflight = box.preflight(workspace_dir=small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert codes(preflight) == ["read_only"]


def test_missing_directory_is_a_reason_that_names_it(box: Machine) -> None:
    preflight = box.preflight(spool_dir=box.root / "nowhere")
    (reason,) = preflight.check()
    assert reason.code == "directory"
    assert str(box.root / "nowhere") in reason.text
    (box.root / "nowhere").mkdir()
    assert preflight.check() == []


def test_memory_recovers_only_a_tenth_above_its_limit(box: Machine) -> None:
    preflight = box.preflight(min_free_memory_bytes=100 * MIB)
    seen = []
    for available in (105, 99, 105, 109, 111, 105, 99):
        box.set_memory(available * MIB)
        seen.append(codes(preflight))
    assert seen == [[], ["memory"], ["memory"], ["memory"], [], [], ["memory"]]
    (reason,) = preflight.check()
    assert reason.text.startswith("99.0 MiB of memory free, limit 100.0 MiB (again from 110.0 MiB)")


def test_unknown_memory_is_no_reason(box: Machine) -> None:
    (box.root / "meminfo").write_text("MemTotal: 9 kB\n")
    assert box.preflight().check() == []


@pytest.mark.parametrize("name", ["database", "redis"])
@pytest.mark.parametrize(("skew_s", "word"), [(6.0, "behind"), (-6.0, "ahead of")])
def test_clock_is_held_against_both_servers(box: Machine, name: str, skew_s: float, word: str) -> None:
    preflight = box.preflight(max_clock_skew_s=5.0)
    setattr(box, f"{name}_skew_s", skew_s)
    (reason,) = preflight.check()
    assert reason.code == f"clock_{name}"
    assert f"6.0 s {word} the clock of {name}, limit 5 s" in reason.text


def test_clock_recovers_only_a_tenth_below_its_limit(box: Machine) -> None:
    preflight = box.preflight(max_clock_skew_s=5.0)
    seen = []
    for skew_s in (4.9, -5.1, 4.9, -4.6, 4.5, 4.9, 5.1, None):
        box.database_skew_s = skew_s
        seen.append(bool(preflight.check()))
    assert seen == [False, True, True, True, False, False, True, False]


def test_unknown_clock_is_no_reason(box: Machine) -> None:
    box.database_skew_s = box.redis_skew_s = None
    assert box.preflight().check() == []


def test_spool_is_a_reason_before_it_is_full(box: Machine) -> None:
    preflight = box.preflight(spool_limit_bytes=1000 * MIB)
    seen = []
    for used in (790, 801, 790, 730, 720, 790):
        box.spool_bytes = used * MIB
        seen.append(codes(preflight))
    assert seen == [[], ["spool"], ["spool"], ["spool"], [], []]


def test_hold_file_holds_with_its_text_until_it_is_gone(box: Machine) -> None:
    preflight, hold = box.preflight(), box.root / "state/hold"
    hold.write_bytes(b"  disk swap\nby \xff Ann ")
    (reason,) = preflight.check()
    assert reason.code == "hold"
    assert f"held by {hold}: disk swap by \N{REPLACEMENT CHARACTER} Ann; remove the file" in reason.text
    hold.write_bytes(b"")
    assert "no reason given" in preflight.check()[0].text
    hold.unlink()
    assert preflight.check() == []


def test_hold_that_cannot_be_read_holds(box: Machine) -> None:
    (box.root / "state/hold").mkdir()
    assert codes(box.preflight()) == ["hold"]


def test_all_reasons_are_told_at_once_each_in_one_line(box: Machine) -> None:
    box.database_skew_s, box.redis_skew_s, box.spool_bytes = 9.0, -9.0, 1 << 50
    box.set_memory(0)
    (box.root / "state/hold").write_text("why\nnot")
    reasons = box.preflight(min_free_bytes=1 << 60, min_free_inodes=10**15).check()
    found = [reason.code for reason in reasons]
    assert found == ["hold", "disk", "inodes", "memory", "clock_database", "clock_redis", "spool"]
    assert not any("\n" in reason.text for reason in reasons)


def test_answer_is_given_again_for_a_while(box: Machine) -> None:
    preflight = box.preflight(cache_s=0.2)
    assert preflight.check() == []
    box.set_memory(0)
    assert preflight.check() == []
    deadline = clock.Deadline.after(10)
    while not preflight.check() and not deadline.is_passed:
        clock.sleep(0.01)
    assert codes(preflight) == ["memory"]


def test_check_takes_less_than_a_millisecond(box: Machine) -> None:
    preflight = box.preflight()
    took_s = []
    for _ in range(50):
        begin = clock.mono()
        preflight.check()
        took_s.append(clock.mono() - begin)
    assert sorted(took_s)[len(took_s) // 2] < 0.001
