"""Secrets on the server are read strictly; secrets that steps register are masked before they are printed."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from agent.build.secrets import (
    FILE_LIMIT_BYTES,
    FILE_LIMIT_LINES,
    SECRET_LIMIT_BYTES,
    SecretDirectory,
    SecretsFile,
)
from agent.errors import SecretError, WorkspaceError
from agent.output.redact import Redactor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    return folder


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def is_masked(redactor: Redactor, secret: str) -> bool:
    stream = redactor.stream()
    return secret.encode() not in stream.feed(secret.encode()) + stream.finish()


# -- the server's folder -----------------------------------------------------------------------------------


def test_secrets_are_read_by_name_without_a_closing_line_end(folder: Path) -> None:
    write(folder / "TOKEN", b"hunter2-hunter2\n")
    write(folder / "deploy_key", b"one\ntwo\n", mode=0o640)
    write(folder / "dos", "grüße\r\n".encode())
    found = SecretDirectory(folder).get(["TOKEN", "deploy_key", "dos", "TOKEN"])
    assert found == {"TOKEN": "hunter2-hunter2", "deploy_key": "one\ntwo", "dos": "grüße"}


def test_a_changed_secret_is_had_without_a_restart(folder: Path) -> None:
    secrets = SecretDirectory(folder)
    write(folder / "TOKEN", b"first")
    assert secrets.get(["TOKEN"]) == {"TOKEN": "first"}
    write(folder / "TOKEN", b"second")
    assert secrets.get(["TOKEN"]) == {"TOKEN": "second"}


def test_no_secrets_asked_for_needs_no_folder(tmp_path: Path) -> None:
    assert SecretDirectory(tmp_path / "absent").get([]) == {}


def test_all_missing_secrets_are_named_with_the_place_looked_in(folder: Path) -> None:
    write(folder / "THERE", b"a value")
    with pytest.raises(SecretError) as caught:
        SecretDirectory(folder).get(["FIRST", "THERE", "SECOND"])
    assert "'FIRST', 'SECOND'" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "THERE" not in str(caught.value)
    with pytest.raises(SecretError, match=r"'FIRST' \(looked in .*absent\)"):
        SecretDirectory(folder / "absent").get(["FIRST"])


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../outside",
        "/etc/hostname",
        "a/b",
        "-n",
        "a.b",
        "0a",
        ".hidden",
        "a\0b",
        "a\n",
        "x" * 129,
    ],
)
def test_names_that_could_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    write(folder.parent / "outside", b"outside value")
    with pytest.raises(SecretError, match="not a name of a secret"):
        SecretDirectory(folder).get([name])


def test_link_is_followed_inside_the_folder_and_not_out_of_it(folder: Path) -> None:
    (folder / "..data").mkdir()
    write(folder / "..data" / "TOKEN", b"linked value")
    (folder / "TOKEN").symlink_to("..data/TOKEN")
    assert SecretDirectory(folder).get(["TOKEN"]) == {"TOKEN": "linked value"}
    write(folder.parent / "outside", b"outside value")
    (folder / "ESCAPE").symlink_to("../outside")
    with pytest.raises(SecretError, match="leads out of") as caught:
        SecretDirectory(folder).get(["ESCAPE"])
    assert "outside value" not in str(caught.value)


def test_link_that_leads_to_itself_is_refused(folder: Path) -> None:
    (folder / "LOOP").symlink_to("LOOP")
    with pytest.raises(SecretError, match="LOOP"):
        SecretDirectory(folder).get(["LOOP"])


def test_folder_that_is_a_link_itself_is_used(folder: Path) -> None:
    write(folder / "TOKEN", b"a value")
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert SecretDirectory(link).get(["TOKEN"]) == {"TOKEN": "a value"}


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o601])
def test_file_open_to_everyone_is_refused_with_the_command_that_mends_it(folder: Path, mode: int) -> None:
    path = write(folder / "TOKEN", b"a value", mode=mode)
    with pytest.raises(SecretError) as caught:
        SecretDirectory(folder).get(["TOKEN"])
    command = str(caught.value).rpartition("run: ")[2]
    subprocess.run(shlex.split(command), check=True)
    assert path.stat().st_mode & 0o777 == mode & 0o770
    assert SecretDirectory(folder).get(["TOKEN"]) == {"TOKEN": "a value"}


def test_only_regular_files_are_read_and_none_blocks(folder: Path) -> None:
    os.mkfifo(folder / "PIPE", mode=0o600)
    (folder / "FOLDER").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "SOCKET"))
        with pytest.raises(SecretError) as caught:
            SecretDirectory(folder).get(["PIPE", "FOLDER", "SOCKET"])
    assert str(caught.value).count("secret '") == 3
    assert str(caught.value).count("not a regular file") == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"x" * (SECRET_LIMIT_BYTES + 1), "larger than 64 KiB"),
        (b"\xff\xfe-value", "not UTF-8"),
        (b"val\0ue", "NUL"),
        (b"\n", "is empty"),
    ],
)
def test_what_no_environment_can_hold_is_refused_without_showing_it(
    folder: Path, data: bytes, reason: str
) -> None:
    write(folder / "TOKEN", data)
    with pytest.raises(SecretError, match=reason) as caught:
        SecretDirectory(folder).get(["TOKEN"])
    error: BaseException | None = caught.value
    while error is not None:
        assert "value" not in str(error)
        error = error.__cause__


def test_largest_secret_is_read_whole(folder: Path) -> None:
    write(folder / "TOKEN", b"x" * SECRET_LIMIT_BYTES)
    assert len(SecretDirectory(folder).get(["TOKEN"])["TOKEN"]) == SECRET_LIMIT_BYTES


# -- the steps' file ---------------------------------------------------------------------------------------


@pytest.fixture
def redactor() -> Redactor:
    return Redactor()


@pytest.fixture
def file(tmp_path: Path, redactor: Redactor) -> SecretsFile:
    return SecretsFile(tmp_path / "build-secrets", redactor)


def append(file: SecretsFile, data: bytes) -> None:
    with file.path.open("ab") as stream:
        stream.write(data)


def test_file_is_created_for_its_owner_only(file: SecretsFile) -> None:
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.read_bytes() == b""


def test_file_that_cannot_be_created_is_an_error_of_the_workspace(tmp_path: Path, redactor: Redactor) -> None:
    with pytest.raises(WorkspaceError, match="can't be created"):
        SecretsFile(tmp_path / "absent" / "build-secrets", redactor)


def test_line_of_a_step_is_a_secret_from_the_next_poll_on(file: SecretsFile, redactor: Redactor) -> None:
    file.poll()
    subprocess.run(["sh", "-c", 'echo made-by-step >> "$1"', "-", str(file.path)], check=True)
    assert not is_masked(redactor, "made-by-step")
    file.poll()
    assert is_masked(redactor, "made-by-step")
    append(file, b"second-one\r\nthird-one!\n\nabc\n")
    file.poll()
    assert is_masked(redactor, "second-one")
    assert is_masked(redactor, "third-one!")
    assert b"abc" in redactor.unmaskable
    assert file.refused is None


def test_line_counts_only_when_it_is_complete(file: SecretsFile, redactor: Redactor) -> None:
    append(file, b"first-half")
    file.poll()
    assert not is_masked(redactor, "first-half")
    append(file, b"-second-half\n")
    file.poll()
    assert is_masked(redactor, "first-half-second-half")
    assert not is_masked(redactor, "first-half-second-hal")


def test_file_written_anew_is_read_from_its_beginning(file: SecretsFile, redactor: Redactor) -> None:
    append(file, b"the-first-secret\n")
    file.poll()
    for number, data in enumerate(
        (b"short-one\n", b"longer-than-it-was-before\n", b"LONGER-than-it-was-before\n")
    ):
        file.path.write_bytes(data)
        os.utime(file.path, ns=(number, number))
        file.poll()
        assert is_masked(redactor, data.decode().strip())
    assert is_masked(redactor, "the-first-secret")


def test_hole_left_by_a_writer_with_an_old_offset_is_passed_over(
    file: SecretsFile, redactor: Redactor
) -> None:
    with file.path.open("wb", buffering=0) as stream:
        stream.write(b"the-first-secret\n")
        file.poll()
        os.truncate(file.path, 0)
        file.poll()
        stream.write(b"the-other-secret\n")
    file.poll()
    assert file.path.read_bytes().startswith(b"\0")
    assert is_masked(redactor, "the-other-secret")


def test_removed_and_made_again_file_is_read(file: SecretsFile, redactor: Redactor) -> None:
    append(file, b"the-first-secret\n")
    file.poll()
    file.path.unlink()
    file.poll()
    file.path.write_bytes(b"the-other-secret\n")
    file.poll()
    assert is_masked(redactor, "the-first-secret")
    assert is_masked(redactor, "the-other-secret")


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "folder", "socket"])
def test_file_replaced_by_something_else_is_refused_and_never_read(
    file: SecretsFile, redactor: Redactor, tmp_path: Path, kind: str
) -> None:
    other = write(tmp_path / "other", b"of-another-file\n")
    file.path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "symlink":
            file.path.symlink_to(other)
        elif kind == "hard link":
            file.path.hardlink_to(other)
        elif kind == "pipe":
            os.mkfifo(file.path)
        elif kind == "folder":
            file.path.mkdir()
        else:
            listener.bind(str(file.path))
        file.poll()
        file.poll()
    assert not is_masked(redactor, "of-another-file")
    assert "no longer a regular file" in (file.refused or "")


def test_number_and_size_of_registered_secrets_are_bounded(file: SecretsFile, redactor: Redactor) -> None:
    append(file, b"".join(b"secret-number-%06d\n" % number for number in range(FILE_LIMIT_LINES + 10)))
    file.poll()
    assert is_masked(redactor, f"secret-number-{FILE_LIMIT_LINES - 1:06}")
    assert not is_masked(redactor, f"secret-number-{FILE_LIMIT_LINES:06}")
    assert "as many secrets as it may" in (file.refused or "")


def test_huge_file_is_not_read_to_its_end(file: SecretsFile) -> None:
    os.truncate(file.path, 1 << 40)
    file.poll()
    assert f"more than {FILE_LIMIT_BYTES // 1024} KiB" in (file.refused or "")


def test_line_longer_than_a_read_is_masked_in_pieces(file: SecretsFile, redactor: Redactor) -> None:
    line = b"".join(b"%07d." % number for number in range(12_000))
    append(file, line + b"\n")
    file.poll()
    stream = redactor.stream()
    assert stream.feed(line) + stream.finish() == b"[masked]"


def test_poll_without_a_change_opens_nothing(file: SecretsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    append(file, b"the-first-secret\n")
    file.poll()
    opened: list[object] = []
    monkeypatch.setattr("agent.build.secrets.os.open", lambda *call: opened.append(call))
    for _ in range(100):
        file.poll()
    assert not opened


def test_threads_that_poll_together_return_with_the_secret_masked(
    file: SecretsFile, redactor: Redactor
) -> None:
    failed: list[str] = []
    for number in range(20):
        secret = f"secret-number-{number:04}-end"
        barrier = threading.Barrier(4)

        def look(secret: str = secret, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(timeout=10)
            file.poll()
            if not is_masked(redactor, secret):
                failed.append(secret)

        append(file, secret.encode() + b"\n")
        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    assert not failed
