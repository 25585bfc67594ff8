"""An image that was gone back to: its agent starts on a schema that a later version has made, if that only added."""

from __future__ import annotations

from pathlib import Path

from agent.errors import SchemaMismatch
from agent.model.outcome import Outcome
from tests.acceptance.farm import Farm
from tests.later import ADDING, RENAMING, LaterVersion


def test_agent_of_an_older_image_works_on_a_later_schema_that_only_adds(farm: Farm, tmp_path: Path) -> None:
    """Guards: `compatible_from`, without which the database's schema would have to be the agent's own."""
    later = LaterVersion(tmp_path / "later", ADDING)
    running_on = farm.agent("running-on")
    assert later.command("db", "upgrade", database_url=farm.database_url).returncode == 0
    assert farm.wait_ended(farm.submit("echo hello")).outcome is Outcome.PASSED
    running_on.stop()
    farm.agent("gone-back-to")
    build_id = farm.submit("echo hello")
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.text(build_id, step=1).splitlines() == ["hello"]


def test_agent_that_is_shut_out_says_by_what_and_does_not_start(sqlite_farm: Farm, tmp_path: Path) -> None:
    """Guards: the check at the start, which code 78 makes the last one: systemd does not try again."""
    later = LaterVersion(tmp_path / "later", RENAMING, compatible_from=LaterVersion.revision)
    done = later.command("db", "upgrade", "--lock-out-older", database_url=sqlite_farm.database_url)
    assert done.returncode == 0
    agent = sqlite_farm.agent("too-old", wait_ready=False)
    assert agent.wait_exit() == SchemaMismatch.exit_code
    assert f"works with agents from schema {later.revision} on" in agent.log()
    assert "use a newer agent" in agent.log()
