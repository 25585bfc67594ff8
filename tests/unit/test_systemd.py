"""The unit and its companions, held to the settings and exit codes they are written for."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from agent.config import Settings
from agent.errors import AgentFailed, SchemaMismatch, SettingsError
from agent.host import former_end
from agent.queue.lease import FENCE_MARGIN_SHARE

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd/build-agent.service"
# What needs no reason: it says what it is, or is what every unit has.
OBVIOUS = frozenset(
    {"Description", "ExecStart", "RestartSec", "Group", "UMask", "StateDirectoryMode", "WantedBy", "User"}
)
# Read by the others, never run: lib.sh, pins.sh, profiles.sh.
SCRIPTS = sorted(
    path
    for path in (ROOT / "setup_scripts").glob("*.sh")
    if path.name not in {"lib.sh", "pins.sh", "profiles.sh"}
)


@cache
def directives() -> dict[str, str]:
    """Return the unit's lines by name."""
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    found: dict[str, str] = {}
    for line in lines:
        name, value = line.split("=", 1)
        # What names other units may stand more than once, each with its own reason.
        assert name not in found or name in ("After", "Requires"), name
        found[name] = f"{found[name]} {value}" if name in found else value
    return found


def seconds(text: str) -> float:
    """Read a time span of systemd.time(7), as far as the unit uses them."""
    number, unit = re.fullmatch(r"(\d+)(s|min|h)?", text).groups()  # type: ignore[union-attr]
    return float(number) * {"min": 60, "h": 3600}.get(unit, 1)


def test_first_boot_comes_before_the_agent_and_its_failure_is_told() -> None:
    assert "build-agent-first-boot.service" in directives()["Requires"]
    assert "build-agent-first-boot.service" in directives()["After"]
    first = (ROOT / "systemd/build-agent-first-boot.service").read_text()
    for unit in (UNIT.read_text(), first):
        assert "\nOnFailure=build-agent-failed.service\n" in unit
    assert (ROOT / "systemd/build-agent-failed.service").exists()


def test_end_of_a_life_is_left_where_the_next_one_looks() -> None:
    place = Settings().state_dir / former_end.NAME
    assert directives()["ExecStopPost"].endswith(f">{place}'")


def test_stop_lasts_longer_than_the_drain_it_begins() -> None:
    assert seconds(directives()["TimeoutStopSec"]) > Settings().stop_limit_s


def test_watchdog_kills_a_frozen_agent_within_its_lease() -> None:
    # The agent reports every quarter of the limit; the last report may be that much older than the last renewal.
    limit_s = seconds(directives()["WatchdogSec"])
    assert limit_s + limit_s / 4 <= Settings().lease_s * (1 - FENCE_MARGIN_SHARE)
    assert directives()["WatchdogSignal"] == "SIGKILL"


def test_only_what_a_person_has_to_mend_is_not_started_again() -> None:
    assert directives()["Restart"] == "on-failure"
    kept_down = {int(code) for code in directives()["RestartPreventExitStatus"].split()}
    assert kept_down == {SettingsError.exit_code, SchemaMismatch.exit_code}
    assert AgentFailed.exit_code not in kept_down


def test_stop_signals_the_agent_alone_and_kills_what_is_left() -> None:
    assert directives()["KillMode"] == "mixed"
    assert "ExecReload" not in directives()
    assert "ExecStop" not in directives()


def test_steps_die_before_the_agent_when_memory_runs_out() -> None:
    assert int(directives()["OOMScoreAdjust"]) < 0
    assert directives()["OOMPolicy"] == "continue"


def test_agent_runs_as_its_own_user_on_its_own_directory() -> None:
    users = (ROOT / "systemd/build-agent.sysusers.conf").read_text()
    assert re.search(r'^u build-agent - ".+" (\S+) /usr/sbin/nologin$', users, re.MULTILINE)[1] == str(  # type: ignore[index]
        Settings().state_dir
    )
    assert f"/var/lib/{directives()['StateDirectory']}" == str(Settings().state_dir)
    assert directives()["User"] == directives()["Group"] == "build-agent"


def test_settings_and_secrets_are_not_open_to_all() -> None:
    lines = (ROOT / "systemd/build-agent.tmpfiles.conf").read_text().splitlines()
    made = {
        fields[1]: fields for line in lines if len(fields := line.split()) == 6 and not line.startswith("#")
    }
    assert set(made) == {
        "/etc/build-agent",
        "/etc/build-agent/agent.toml",
        str(Settings().secrets_dir),
        str(Settings().state_dir),
    }
    assert all(fields[2].endswith("0") for fields in made.values())
    assert [path for path, fields in made.items() if fields[3] != "root"] == [str(Settings().state_dir)]


@pytest.mark.parametrize("path", sorted((ROOT / "systemd").iterdir()), ids=lambda path: path.name)
def test_every_line_that_is_not_obvious_has_its_reason_above_it(path: Path) -> None:
    """A comment stands for the lines under it, up to an empty one."""
    bare = []
    for block in re.split(r"\n\s*\n", path.read_text()):
        lines = [line for line in block.splitlines() if not line.startswith("[")]
        has_reason = bool(lines) and lines[0].startswith("#")
        names = [line.split("=", 1)[0] for line in lines if not line.startswith("#")]
        bare += [name for name in names if not has_reason and name not in OBVIOUS]
    assert not bare


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_setup_script_is_strict_and_explains_itself(script: Path) -> None:
    assert "\nset -euo pipefail\n" in script.read_text()
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, timeout=10)
    assert shown.stdout.startswith(f"usage: {script.name}")
    wrong = subprocess.run([script, "--wrong"], capture_output=True, text=True, check=False, timeout=10)
    assert wrong.returncode == 64
