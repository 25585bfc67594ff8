"""Caches: what is saved comes back exactly, only there, only whole, and never from or to elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.build.cache import Caches, hash_files
from agent.errors import DefinitionError

_LIMIT = 10 << 20


@pytest.fixture
def caches(tmp_path: Path) -> Caches:
    return Caches(tmp_path / "caches", _LIMIT)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A workspace with a directory `deps` to cache."""
    source = tmp_path / "source"
    (source / "deps" / "bin").mkdir(parents=True)
    (source / "deps" / "bin" / "tool").write_text("#!/bin/sh\n")
    (source / "deps" / "bin" / "tool").chmod(0o755)
    (source / "deps" / "link").symlink_to("bin/tool")
    (source / "deps" / "up").symlink_to("../deps/bin")
    return source


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Make new empty workspaces."""

    def make() -> Path:
        path = tmp_path / f"fresh{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        return path

    return make


def _entry(caches_root: Path) -> Path:
    (path,) = caches_root.glob("entries/*/*")
    return path


def test_saved_tree_comes_back_exactly(caches: Caches, source: Path, fresh: Callable[[], Path]) -> None:
    odd = source / "deps" / os.fsdecode(b"-new\nline\xff")
    odd.write_bytes(b"x" * 100_000)
    os.utime(odd, ns=(1, 1_700_000_000_123_456_789))
    (source / "deps" / "sealed").mkdir()
    (source / "deps" / "sealed" / "file").touch()
    (source / "deps" / "sealed").chmod(0o555)
    (source / "other").touch()
    assert caches.save("p", "k", ["deps"], source)
    target = fresh()
    assert caches.restore("p", "k", [], ["deps"], target) == "k"
    assert [path.name for path in target.iterdir()] == ["deps"]
    assert os.access(target / "deps" / "bin" / "tool", os.X_OK)
    assert (target / "deps" / "link").readlink() == Path("bin/tool")
    assert (target / "deps" / "up").readlink() == Path("../deps/bin")
    back = target / "deps" / odd.name
    assert back.read_bytes() == odd.read_bytes()
    assert back.stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert stat.S_IMODE((target / "deps" / "sealed").stat().st_mode) == 0o555
    assert (target / "deps" / "sealed" / "file").exists()


def test_first_save_of_a_key_wins(caches: Caches, source: Path, fresh: Callable[[], Path]) -> None:
    assert caches.save("p", "k", ["deps"], source)
    (source / "deps" / "bin" / "tool").write_text("changed")
    assert not caches.save("p", "k", ["deps"], source)
    target = fresh()
    caches.restore("p", "k", [], ["deps"], target)
    assert (target / "deps" / "bin" / "tool").read_text() == "#!/bin/sh\n"


def test_saves_at_the_same_time_publish_one_whole_entry(
    caches: Caches, source: Path, tmp_path: Path, fresh: Callable[[], Path]
) -> None:
    saved: list[bool] = []
    threads = [
        threading.Thread(target=lambda: saved.append(caches.save("p", "k", ["deps"], source)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(saved) == [False] * 7 + [True]
    assert caches.restore("p", "k", [], ["deps"], fresh()) == "k"
    assert list((tmp_path / "caches" / "temporary").iterdir()) == []


def test_projects_do_not_see_each_others_keys(
    caches: Caches, source: Path, fresh: Callable[[], Path]
) -> None:
    caches.save("p", "k", ["deps"], source)
    assert caches.restore("q", "k", ["k", ""], ["deps"], fresh()) is None
    assert caches.restore("../p", "k", [""], ["deps"], fresh()) is None


def test_restore_keys_find_the_newest_with_the_prefix(
    caches: Caches, source: Path, fresh: Callable[[], Path]
) -> None:
    for key in ("pip-1", "pip-2", "npm-1"):
        caches.save("p", key, ["deps"], source)
    assert caches.restore("p", "pip-3", ["gem-", "pip-"], ["deps"], fresh()) == "pip-2"
    assert caches.restore("p", "pip-1", ["pip-"], ["deps"], fresh()) == "pip-1"
    assert caches.restore("p", "pip-3", [], ["deps"], fresh()) is None


def test_entry_of_other_paths_is_a_miss(caches: Caches, source: Path, fresh: Callable[[], Path]) -> None:
    caches.save("p", "k", ["deps"], source)
    assert caches.restore("p", "k", [""], ["deps/bin"], fresh()) is None


def test_nothing_at_the_paths_saves_nothing(caches: Caches, source: Path, tmp_path: Path) -> None:
    assert not caches.save("p", "k", ["absent"], source)
    assert list((tmp_path / "caches").glob("entries/*/*")) == []


def test_damaged_entry_is_a_miss_and_deleted(
    caches: Caches, source: Path, tmp_path: Path, fresh: Callable[[], Path]
) -> None:
    caches.save("p", "k", ["deps"], source)
    archive = _entry(tmp_path / "caches") / "data.tar"
    data = bytearray(archive.read_bytes())
    data[600] ^= 1
    archive.write_bytes(data)
    target = fresh()
    assert caches.restore("p", "k", [], ["deps"], target) is None
    assert list(target.iterdir()) == []
    assert caches.save("p", "k", ["deps"], source), "the key is free again"


def test_restore_goes_on_with_older_entries_after_a_damaged_one(
    caches: Caches, source: Path, tmp_path: Path, fresh: Callable[[], Path]
) -> None:
    caches.save("p", "k-1", ["deps"], source)
    first = _entry(tmp_path / "caches")
    caches.save("p", "k-2", ["deps"], source)
    (newest,) = (path for path in tmp_path.glob("caches/entries/*/*") if path != first)
    (newest / "data.tar").write_bytes(b"")
    assert caches.restore("p", "k-3", ["k-"], ["deps"], fresh()) == "k-1"


def test_least_recently_used_entries_are_evicted(
    source: Path, tmp_path: Path, fresh: Callable[[], Path]
) -> None:
    caches = Caches(tmp_path / "caches", 3_500_000)
    (source / "deps" / "big").write_bytes(bytes(1_000_000))
    for number, key in enumerate(("a", "b", "c")):
        caches.save("p", key, ["deps"], source)
        for meta in tmp_path.glob("caches/entries/*/*/meta.json"):
            if json.loads(meta.read_bytes())["key"] == key:
                os.utime(meta, (number, number))
    caches.restore("p", "a", [], ["deps"], fresh())
    assert caches.save("p", "d", ["deps"], source)
    assert [caches.restore("p", key, [], ["deps"], fresh()) for key in "abcd"] == ["a", None, "c", "d"]


def test_tree_larger_than_the_limit_is_not_saved(source: Path, tmp_path: Path) -> None:
    caches = Caches(tmp_path / "caches", 1_000_000)
    (source / "deps" / "big").write_bytes(bytes(1_000_000))
    assert not caches.save("p", "k", ["deps"], source)
    assert [path for path in (tmp_path / "caches").rglob("*") if path.is_file()] == []


def test_sweep_deletes_half_written_entries(caches: Caches, tmp_path: Path) -> None:
    (tmp_path / "caches" / "temporary" / "half").mkdir()
    caches.sweep()
    assert list((tmp_path / "caches" / "temporary").iterdir()) == []


@pytest.mark.parametrize("path", ["../x", "/etc", "", ".", "deps/../../x", "~/../../x"])
def test_f30_paths_outside_the_workspace_are_refused(caches: Caches, source: Path, path: str) -> None:
    with pytest.raises(DefinitionError, match="must be relative"):
        caches.save("p", "k", [path], source)
    with pytest.raises(DefinitionError, match="must be relative"):
        caches.restore("p", "k", [], [path], source)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../../secret", "bin/../../../secret", "up/../x", ".." * 9]
)
def test_f30_symlink_that_leads_out_is_not_saved(caches: Caches, source: Path, target: str) -> None:
    (source / "deps" / "evil").symlink_to(target)
    if target == ".." * 9:
        assert caches.save("p", "k", ["deps"], source), "dots that are a name are no way up"
        return
    with pytest.raises(DefinitionError, match="deps/evil"):
        caches.save("p", "k", ["deps"], source)


def test_f30_save_does_not_read_through_a_symlinked_path(
    caches: Caches, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").touch()
    (source / "out").symlink_to(tmp_path / "secret")
    assert not caches.save("p", "k1", ["out/token"], source)
    with pytest.raises(DefinitionError):
        caches.save("p", "k2", ["out"], source)


def test_f30_restore_does_not_write_through_a_symlink_of_the_source(
    caches: Caches, source: Path, tmp_path: Path, fresh: Callable[[], Path]
) -> None:
    caches.save("p", "k", ["deps"], source)
    outside = fresh()
    for name in ("deps", "deps/bin"):
        target = fresh()
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).symlink_to(outside)
        with pytest.raises(DefinitionError, match="crosses a symlink"):
            caches.restore("p", "k", [], ["deps"], target)
    caches.save("p", "nested", ["deps/bin"], source)
    target = fresh()
    (target / "deps").symlink_to(outside)
    with pytest.raises(DefinitionError, match="crosses a symlink"):
        caches.restore("p", "nested", [], ["deps/bin"], target)
    assert list(outside.iterdir()) == []
    target = fresh()
    (outside / "precious").write_text("safe")
    (target / "deps" / "bin").mkdir(parents=True)
    (target / "deps" / "bin" / "tool").symlink_to(outside / "precious")
    assert caches.restore("p", "k", [], ["deps"], target) == "k"
    assert (outside / "precious").read_text() == "safe"
    assert not (target / "deps" / "bin" / "tool").is_symlink()


def test_special_files_are_left_out(caches: Caches, source: Path, fresh: Callable[[], Path]) -> None:
    os.mkfifo(source / "deps" / "fifo")
    (source / "deps" / "bin" / "tool").chmod(0o6755)
    caches.save("p", "k", ["deps"], source)
    target = fresh()
    caches.restore("p", "k", [], ["deps"], target)
    assert not (target / "deps" / "fifo").exists()
    assert stat.S_IMODE((target / "deps" / "bin" / "tool").stat().st_mode) == 0o755


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "members",
    [
        [_member("../evil")],
        [_member("/etc/evil")],
        [_member("elsewhere/evil")],
        [_member("deps/../evil")],
        [_member("deps/dev", tarfile.CHRTYPE)],
        [_member("deps/fifo", tarfile.FIFOTYPE)],
        [_member("deps/hard", tarfile.LNKTYPE, "/etc/passwd")],
        [_member("deps/link", tarfile.SYMTYPE, "/etc")],
        [_member("deps/a", tarfile.SYMTYPE, "."), _member("deps/b", tarfile.SYMTYPE, "a/../../..")],
    ],
)
def test_f30_forged_archive_with_the_right_digest_is_refused_whole(
    caches: Caches, source: Path, tmp_path: Path, fresh: Callable[[], Path], members: list[tarfile.TarInfo]
) -> None:
    caches.save("p", "k", ["deps"], source)
    entry = _entry(tmp_path / "caches")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in [_member("deps/good"), *members]:
            tar.addfile(member)
    (entry / "data.tar").write_bytes(buffer.getvalue())
    meta = json.loads((entry / "meta.json").read_bytes())
    meta["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (entry / "meta.json").write_text(json.dumps(meta))
    target = fresh()
    assert caches.restore("p", "k", [], ["deps"], target) is None
    assert list(target.iterdir()) == []


def test_hash_depends_on_names_and_contents_only(source: Path, fresh: Callable[[], Path]) -> None:
    before = hash_files(source, ["**/tool", "deps/link"])
    assert before == hash_files(source, ["deps/link", "deps/bin/*"])
    os.utime(source / "deps" / "bin" / "tool", (1, 1))
    (source / "deps" / "bin" / "tool").chmod(0o600)
    assert hash_files(source, ["**/tool", "deps/link"]) == before
    (source / "deps" / "bin" / "tool").write_text("other")
    assert hash_files(source, ["**/tool", "deps/link"]) != before
    assert hash_files(source, ["none"]) == hash_files(fresh(), ["*"])


def test_f30_hash_does_not_follow_symlinks(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one")
    (source / "lock").symlink_to(secret)
    before = hash_files(source, ["lock"])
    secret.write_text("two")
    assert hash_files(source, ["lock"]) == before
    (source / "lock").unlink()
    (source / "lock").symlink_to("/elsewhere")
    assert hash_files(source, ["lock"]) != before
    with pytest.raises(DefinitionError):
        hash_files(source, ["../secret"])
