"""The server as such: set-up complete, units, users, permissions, clock, disk, and what hardening and hygiene promise."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import time
from pathlib import Path

import pytest
from conftest import USER, run

ENABLED = (
    "build-agent.service",
    "build-agent-clean-disk.timer",
    "logrotate.timer",
    "nftables.service",
    "ssh.service",
)
NOT_ENABLED = ("apt-daily.timer", "apt-daily-upgrade.timer", "podman.socket", "unattended-upgrades.service")
STATE = Path("/var/lib/build-agent-setup")
OPEN_TO = {
    "/etc/build-agent": ("root", 0o750),
    "/etc/build-agent/secrets": ("root", 0o750),
    "/var/lib/build-agent": (USER, 0o700),
    "/root": ("root", 0o700),
}


def output_of(*words: str) -> str:
    """Return what a command prints, whatever its exit code."""
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60).stdout.strip()


def is_container() -> bool:
    """Whether this is a container: its kernel's settings and its clock are the host's."""
    return subprocess.run(["systemd-detect-virt", "--quiet", "--container"], check=False).returncode == 0


def test_set_up_has_come_to_its_end() -> None:
    unfinished = STATE / "unfinished"
    assert not unfinished.exists(), f"{unfinished}: {unfinished.read_text()}"


def test_nothing_forbids_services_to_start() -> None:
    policy = Path("/usr/sbin/policy-rc.d")
    assert not policy.exists(), f"{policy} was left by a set-up that was killed: run setup.sh again"


@pytest.mark.parametrize("unit", ENABLED)
def test_unit_starts_at_boot(unit: str) -> None:
    state = output_of("systemctl", "is-enabled", unit)
    assert state in {"enabled", "static", "alias"}, (
        f"{unit} is {state or 'not there'}: systemctl enable {unit}"
    )


@pytest.mark.parametrize("unit", NOT_ENABLED)
def test_unit_does_not_start_at_boot(unit: str) -> None:
    state = output_of("systemctl", "is-enabled", unit)
    assert state != "enabled", f"{unit} would change a running server: systemctl disable {unit}"


def test_no_unit_has_failed() -> None:
    failed = [
        line.split()[0]
        for line in output_of("systemctl", "list-units", "--failed", "--plain", "-q").splitlines()
    ]
    assert not failed, f"failed units: {failed}; journalctl --unit says why"


def test_packages_are_whole() -> None:
    fault = output_of("dpkg", "--audit")
    assert not fault, f"packages are not whole, run dpkg --configure -a: {fault[:500]}"


def test_build_user_cannot_log_in_and_has_subordinate_ids() -> None:
    user = pwd.getpwnam(USER)
    assert user.pw_shell.endswith("nologin"), f"{USER} has the shell {user.pw_shell}"
    assert 0 < user.pw_uid < 1000, f"{USER} is no system user: {user.pw_uid}"
    for file in ("/etc/subuid", "/etc/subgid"):
        assert f"\n{USER}:" in "\n" + Path(file).read_text(), (
            f"{file} has no line for {USER}: run 20-users.sh"
        )


@pytest.mark.parametrize("path", OPEN_TO)
def test_folder_is_closed_to_others(path: str) -> None:
    owner, mode = OPEN_TO[path]
    info = Path(path).stat()
    found = (pwd.getpwuid(info.st_uid).pw_name, stat.S_IMODE(info.st_mode))
    assert found == (owner, mode), f"{path} is {found[0]} {found[1]:o} instead of {owner} {mode:o}"


def test_nobody_else_has_an_empty_or_known_password() -> None:
    open_users = [
        line.split(":")[0]
        for line in Path("/etc/shadow").read_text().splitlines()
        if line.split(":")[1] == ""
    ]
    assert not open_users, f"users without a password: {open_users}; passwd --lock closes them"


def test_ssh_takes_keys_alone(tmp_path: Path) -> None:
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = run("sshd", "-T", "-h", str(key)).splitlines()
    for line in ("passwordauthentication no", "kbdinteractiveauthentication no", "x11forwarding no"):
        assert line in settings, f"sshd does not say {line!r}: see /etc/ssh/sshd_config.d"


def test_metadata_service_is_closed_to_build_users() -> None:
    rules = Path("/etc/nftables.d/10-build-agent.nft").read_text()
    assert "169.254.169.254" in rules
    # A container that may not set rules passes over the unit; its host closes the way.
    may_run = output_of("systemctl", "show", "--property=ConditionResult", "--value", "nftables") == "yes"
    if may_run or not is_container():
        loaded = output_of("nft", "list", "table", "inet", "build_agent")
        assert "169.254.169.254" in loaded, "the rule is not loaded: systemctl restart nftables"


def test_core_dumps_are_off() -> None:
    words = ["runuser", "-u", USER, "--", "bash", "-c", "ulimit -Hc"]
    assert output_of(*words) == "0", "build users may dump core: see /etc/security/limits.d"


def test_kernel_settings_are_in_force() -> None:
    lines = Path("/etc/sysctl.d/90-build-agent.conf").read_text().splitlines()
    wanted = dict(line.split(" = ", 1) for line in lines if line and not line.startswith("#"))
    assert "kernel.kptr_restrict" in wanted
    if not is_container():
        wrong = [
            f"{name} is {found} instead of {value}"
            for name, value in wanted.items()
            if (found := output_of("sysctl", "-n", name)) != value
        ]
        assert not wrong, f"{wrong}: sysctl --system loads them"


def test_clock_is_sane_and_kept() -> None:
    # Packages are never from the future.
    newest = max(path.stat().st_mtime for path in Path("/usr/share/doc").iterdir())
    assert time.time() > newest - 86400, "the clock is behind the packages: is the time service reached?"
    assert output_of("date", "+%Z") == "UTC", "the server's time is not UTC: run 10-base.sh"
    service = next(
        (
            it
            for it in ("chrony", "systemd-timesyncd")
            if output_of("systemctl", "is-enabled", it) == "enabled"
        ),
        None,
    )
    assert service, "no time service is enabled: run 10-base.sh"
    if not is_container():
        assert output_of("systemctl", "is-active", service) == "active", (
            f"{service} is not running: journalctl -u {service}"
        )


def test_locale_is_utf8() -> None:
    assert "en_US.utf8" in output_of("locale", "-a").splitlines(), (
        "locale en_US.UTF-8 is missing: run 10-base.sh"
    )


@pytest.mark.parametrize("path", ["/", "/var/lib/build-agent", "/tmp"])
def test_disk_has_room(path: str) -> None:
    info = os.statvfs(path)
    free = info.f_bavail * info.f_frsize
    assert free > 500 << 20, f"{path} has {free >> 20} MiB free: builds need more; start from a larger disk"
    assert info.f_files == 0 or info.f_favail > 10_000, f"{path} has {info.f_favail} inodes free"


def test_journal_has_a_limit() -> None:
    assert "SystemMaxUse=" in Path("/etc/systemd/journald.conf.d/10-build-agent.conf").read_text()


def test_disk_is_cleaned_without_a_fault() -> None:
    assert "% used" in run("/usr/local/sbin/build-agent-clean-disk"), "the clean-up of the disk says nothing"


def test_image_says_what_it_is() -> None:
    path = Path("/etc/build-agent/image.json")
    # Written at the end of a bake: it is not there while the server is set up.
    if path.exists():
        facts = json.loads(path.read_text())
        assert {"id", "version", "profile"} <= set(facts), (
            f"{path} lacks what names the image: {sorted(facts)}"
        )
