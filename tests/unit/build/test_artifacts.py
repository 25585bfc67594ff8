"""Artifacts: what is kept, under which names, within which limits, and what is never read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.build.artifacts import Artifacts
from agent.errors import DefinitionError, NotFound


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "artifacts")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "dist").mkdir(parents=True)
    (source / "dist" / "a.whl").write_bytes(b"wheel")
    (source / "report.xml").write_bytes(b"report")
    return source


def _blobs(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "artifacts" / "blobs").rglob("*") if path.is_file()]


def test_matching_files_are_kept_and_listed(artifacts: Artifacts, source: Path) -> None:
    records = artifacts.collect("b", 1, ["dist", "*.xml"], source)
    assert [(r.name, r.size_bytes) for r in records] == [("dist/a.whl", 5), ("report.xml", 6)]
    assert [Path(r.path).read_bytes() for r in records] == [b"wheel", b"report"]
    assert records[0].sha256 == hashlib.sha256(b"wheel").hexdigest()
    assert artifacts.records("b", 1) == records


def test_attempts_have_manifests_of_their_own(artifacts: Artifacts, source: Path) -> None:
    artifacts.collect("b", 1, ["dist"], source)
    artifacts.collect("b", 2, ["*.xml"], source)
    assert [r.name for r in artifacts.records("b", 1)] == ["dist/a.whl"]
    assert [r.name for r in artifacts.records("b", 2)] == ["report.xml"]
    with pytest.raises(NotFound, match="attempt 3"):
        artifacts.records("b", 3)


def test_equal_files_share_a_blob(artifacts: Artifacts, source: Path, tmp_path: Path) -> None:
    (source / "dist" / "b.whl").write_bytes(b"wheel")
    artifacts.collect("b", 1, ["dist"], source)
    artifacts.collect("c", 1, ["dist"], source)
    assert len(_blobs(tmp_path)) == 1


def test_kept_file_outlives_changes_to_the_workspace(artifacts: Artifacts, source: Path) -> None:
    (record,) = artifacts.collect("b", 1, ["dist/a.whl"], source)
    with (source / "dist" / "a.whl").open("r+b") as file:
        file.write(b"WHEEL")
    assert Path(record.path).read_bytes() == b"wheel"


def test_nothing_that_matches_is_an_empty_list(artifacts: Artifacts, source: Path) -> None:
    assert artifacts.collect("b", 1, ["absent/**"], source) == []
    assert artifacts.records("b", 1) == []


@pytest.mark.parametrize("pattern", ["../secret", "/etc/passwd", "dist/../../secret", "", ".", "\0"])
def test_f30_patterns_outside_the_source_are_refused(
    artifacts: Artifacts, source: Path, tmp_path: Path, pattern: str
) -> None:
    (tmp_path / "secret").write_text("token")
    with pytest.raises(DefinitionError, match="artifact pattern"):
        artifacts.collect("b", 1, ["dist", pattern], source)
    assert _blobs(tmp_path) == []


def test_f30_symlinks_are_never_followed(artifacts: Artifacts, source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "token").write_text("token")
    (source / "file-link").symlink_to(secret / "token")
    (source / "dir-link").symlink_to(secret)
    (source / "dist" / "up").symlink_to("../..")
    for pattern in ("dir-link/token", "dir-link/**", "dir-link", "file-link", "dist/up/secret/*"):
        assert artifacts.collect("b", 1, [pattern], source) == [], pattern
    assert [r.name for r in artifacts.collect("b", 1, ["**"], source)] == ["dist/a.whl", "report.xml"]
    assert [path for path in _blobs(tmp_path) if path.read_bytes() == b"token"] == []


def test_f30_odd_names_are_kept_as_they_are(artifacts: Artifacts, source: Path) -> None:
    names = ["-rf", "--help", "new\nline", "quote'\"", "ünï", "*.star", "tab\t"]
    for name in names:
        (source / name).write_text(name)
    (source / os.fsdecode(b"\xff\xfe")).write_text("bytes")
    records = {r.name: Path(r.path).read_text() for r in artifacts.collect("b", 1, ["*"], source)}
    assert {name: records[name] for name in names} == {name: name for name in names}
    assert records["\\xff\\xfe"] == "bytes"
    assert {r.name for r in artifacts.records("b", 1)} == set(records)


def test_f30_fifo_does_not_hold_the_collection(artifacts: Artifacts, source: Path) -> None:
    os.mkfifo(source / "dist" / "fifo")
    assert [r.name for r in artifacts.collect("b", 1, ["dist"], source)] == ["dist/a.whl"]


def test_too_many_bytes_keep_nothing(source: Path, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts", limit_bytes=10)
    with pytest.raises(DefinitionError, match=r"exceed 10 bytes at 'report.xml'"):
        artifacts.collect("b", 1, ["**"], source)
    with pytest.raises(NotFound):
        artifacts.records("b", 1)
    artifacts.prune(1000)
    assert _blobs(tmp_path) == []


def test_sparse_giant_is_refused_before_it_fills_the_disk(source: Path, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts", limit_bytes=4 << 20)
    with (source / "giant").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DefinitionError, match="giant"):
        artifacts.collect("b", 1, ["giant"], source)
    assert list((tmp_path / "artifacts" / "temporary").iterdir()) == []


def test_too_many_files_are_refused(source: Path, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts", limit_files=1)
    with pytest.raises(DefinitionError, match="more than 1 files"):
        artifacts.collect("b", 1, ["**"], source)


def test_prune_deletes_the_oldest_first_and_keeps_shared_blobs(
    artifacts: Artifacts, source: Path, tmp_path: Path
) -> None:
    (source / "old").write_bytes(b"o" * 100)
    artifacts.collect("old", 1, ["old", "dist"], source)
    artifacts.collect("new", 1, ["dist"], source)
    for manifest in (tmp_path / "artifacts" / "manifests").glob("old-*"):
        os.utime(manifest, (1, 1))
    (tmp_path / "artifacts" / "temporary" / "half").touch()
    assert artifacts.prune(50) == 100
    with pytest.raises(NotFound):
        artifacts.records("old", 1)
    (record,) = artifacts.records("new", 1)
    assert Path(record.path).read_bytes() == b"wheel"
    assert list((tmp_path / "artifacts" / "temporary").iterdir()) == []


def test_prune_does_not_take_blobs_of_a_collection_that_runs(artifacts: Artifacts, source: Path) -> None:
    stop = threading.Event()
    freed: list[int] = []

    def prune_on() -> None:
        while not stop.is_set():
            freed.append(artifacts.prune(1 << 20))

    thread = threading.Thread(target=prune_on)
    thread.start()
    try:
        for number in range(50):
            (source / "dist" / "a.whl").write_text(f"wheel {number}")
            for record in artifacts.collect("b", number, ["dist"], source):
                assert Path(record.path).read_text() == f"wheel {number}"
    finally:
        stop.set()
        thread.join(30)
    assert freed
    assert all(Path(r.path).exists() for n in range(50) for r in artifacts.records("b", n))


def test_f25_full_disk_is_said_and_leaves_no_manifest(source: Path, tmp_path: Path) -> None:
    # A file size limit stands for the full disk: write fails the same way, without a file system to fill.
    code = """
import resource, signal, sys
from pathlib import Path
from agent.build.artifacts import Artifacts
from agent.errors import WorkspaceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    Artifacts(Path(sys.argv[1])).collect("b", 1, ["big"], Path(sys.argv[2]))
except WorkspaceError as error:
    print(error)
"""
    (source / "big").write_bytes(bytes(100_000))
    root = tmp_path / "artifacts"
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(source)], capture_output=True, text=True, check=True
    )
    assert "cannot keep the artifacts" in done.stdout
    assert [path for path in root.rglob("*") if path.is_file() and path.name != "lock"] == []
