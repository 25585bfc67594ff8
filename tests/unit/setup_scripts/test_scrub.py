"""F28: every kind of leftover is named by the check, and gone after the scrub."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRUB = Path(__file__).parents[3] / "setup_scripts/scrub.sh"
LEFTOVERS = {
    "/etc/machine-id": "identity",
    "/var/lib/dbus/machine-id": "identity",
    "/etc/ssh/ssh_host_ed25519_key": "ssh host key",
    "/var/lib/systemd/random-seed": "random seed",
    "/var/lib/systemd/credential.secret": "credentials",
    "/etc/hostname": "name of the server",
    "/var/lib/cloud/instance": "cloud-init",
    "/var/lib/dhcp/dhclient.eth0.leases": "DHCP lease",
    "/var/lib/build-agent/server-id": "registration",
    "/var/lib/build-agent/spool/attempt": "spool",
    "/var/lib/build-agent/.hidden": "state of the agent",
    "/etc/build-agent/secrets/token": "secret",
    "/var/lib/build-agent-setup/dist": "set-up",
    "/root/.ssh/authorized_keys": "key",
    "/home/admin/.ssh/authorized_keys": "key",
    "/srv/robot/.ssh/id_ed25519": "private key",
    "/root/.ssh/known_hosts": "knows of hosts",
    "/root/.bash_history": "history",
    "/home/admin/.python_history": "history",
    "/root/.netrc": "token",
    "/root/.npmrc": "token",
    "/root/.pip": "token",
    "/home/admin/.docker": "token",
    "/root/.cache": "cache",
    "/var/log/journal/0123": "log",
    "/var/log/syslog": "log",
    "/var/log/apt/history.log": "log",
    "/var/log/dpkg.log.1": "log",
    "/var/cache/apt/archives/x.deb": "cache of packages",
    "/var/lib/apt/lists/deb_InRelease": "cache of packages",
    "/tmp/left": "temporary file",
    "/var/tmp/a name with [ and *": "temporary file",
    "/usr/sbin/policy-rc.d": "forbids services",
}
# Paths that are folders: what was planted is a file in them.
FOLDERS = {
    "/var/lib/cloud/instance", "/var/lib/build-agent-setup/dist", "/root/.pip", "/home/admin/.docker", "/root/.cache",
    "/var/log/journal/0123",
}  # fmt: skip


def plant(root: Path, path: str, text: str = "left\n") -> Path:
    there = root / path.lstrip("/")
    if path in FOLDERS:
        there = there / "file"
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_text(text)
    return there


def scrub(root: Path, *words: str) -> tuple[int, dict[str, str], str]:
    done = subprocess.run(
        [SCRUB, "--root", root, *words], capture_output=True, text=True, check=False, timeout=60
    )
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith("/"))
    return done.returncode, told, done.stderr


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    (path / "etc").mkdir(parents=True)
    (path / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/bash\nadmin:x:1000:1000::/home/admin:/bin/sh\nrobot:x:999:999::/srv/robot:/bin/sh\n"
    )
    (path / "etc/machine-id").touch()
    (path / "var/log").mkdir(parents=True)
    (path / "var/log/wtmp").touch()
    (path / "tmp/.X11-unix").mkdir(parents=True)
    return path


def test_f28_clean_image_has_nothing_to_name(root: Path) -> None:
    assert scrub(root, "--check")[:2] == (0, {})


@pytest.mark.parametrize("path", LEFTOVERS)
def test_f28_leftover_is_named_and_then_gone(root: Path, path: str) -> None:
    planted = plant(root, path)
    code, told, _ = scrub(root, "--check")
    assert (code, list(told)) == (1, [path])
    assert LEFTOVERS[path] in told[path]
    assert planted.read_text() == "left\n", "a check changes nothing"
    assert scrub(root)[0] == 0
    assert scrub(root, "--check")[:2] == (0, {})
    assert not planted.exists() or planted.stat().st_size == 0


def test_f28_all_at_once_are_each_named(root: Path) -> None:
    for path in LEFTOVERS:
        plant(root, path)
    assert set(scrub(root, "--check")[1]) == set(LEFTOVERS)
    assert scrub(root)[0] == 0
    assert scrub(root, "--check")[:2] == (0, {})
    assert (root / "etc/machine-id").read_bytes() == b""


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/pip.conf", "[global]\nindex-url = https://me:pw@pypi.example.com/simple\n"),
        ("/etc/build-agent/agent.toml", '#slots = 2\nredis_url = "redis://:pw@redis.example.com"\n'),
        ("/etc/environment", "API_TOKEN=abc\n"),
    ],
)
def test_f28_password_in_a_kept_file_is_named_and_left_to_a_person(root: Path, path: str, text: str) -> None:
    planted = plant(root, path, text)
    assert scrub(root)[0] == 0
    code, told, _ = scrub(root, "--check")
    assert (code, list(told)) == (1, [path])
    assert "by hand" in told[path]
    assert planted.read_text() == text


def test_f28_settings_from_user_data_are_another_servers(root: Path) -> None:
    planted = plant(root, "/etc/build-agent/agent.toml", "#build-agent\nslots = 2\n")
    assert list(scrub(root, "--check")[1]) == ["/etc/build-agent/agent.toml"]
    scrub(root)
    assert not planted.exists()


def test_reports_stay_and_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    report = plant(root, "/var/lib/build-agent-setup/report/report.json")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (root / "tmp/link").symlink_to(outside)
    assert scrub(root)[0] == 0
    assert report.exists()
    assert (outside / "file").exists()
    assert not (root / "tmp/link").is_symlink()


def test_half_set_up_server_is_refused_and_untouched(root: Path) -> None:
    plant(root, "/var/lib/build-agent-setup/unfinished")
    planted = plant(root, "/root/.bash_history")
    code, _, fault = scrub(root)
    assert code == 1
    assert "setup.sh" in fault
    assert planted.exists()
    assert "/var/lib/build-agent-setup/unfinished" in scrub(root, "--check")[1]
