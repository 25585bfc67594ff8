"""What the agent knows of itself: every reason not to take a build, the agent's own before the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import Settings
from agent.daemon.agent import Agent
from agent.daemon.condition import Verdict
from agent.daemon.vitals import Vitals
from agent.model.server import ServerState


def settings(folder: Path) -> Settings:
    return Settings(
        state_dir=folder, min_free_bytes=0, min_free_inodes=0, min_free_memory_bytes=0, health_address=""
    )


@pytest.fixture
def vitals(tmp_path: Path) -> Vitals:
    made = Vitals(settings(tmp_path), on_change=lambda: None)
    for folder in (made.settings.workspace_dir, made.settings.spool_dir):
        folder.mkdir(exist_ok=True)
    made.database.succeed()
    made.redis.succeed()
    made.condition.started()
    return made


def test_well_agent_accepts(vitals: Vitals) -> None:
    verdict = vitals.judge()
    assert (verdict.state, list(verdict.reasons)) == (ServerState.ACCEPTING, [])


def test_every_reason_is_told_in_its_order(vitals: Vitals) -> None:
    vitals.failure = "failed: loop shipper died"
    vitals.fenced = "taken for lost"
    vitals.database.fail("gone")
    vitals.redis.fail("refused")
    vitals.is_suspended = True
    (vitals.settings.state_dir / "hold").write_text("maintenance")
    reasons = vitals.judge().reasons
    expected = ["failed: ", "taken for lost", "database: gone", "redis: refused", "suspended", "held by"]
    assert len(reasons) == len(expected)
    assert all(reason.startswith(words) for reason, words in zip(reasons, expected, strict=True))


@pytest.mark.parametrize("link", ["database", "redis"])
def test_either_link_that_is_down_closes_the_gate(vitals: Vitals, link: str) -> None:
    getattr(vitals, link).fail("gone")
    assert vitals.judge().state is ServerState.NOT_READY


def test_draining_server_is_drained_when_its_last_build_is_out(vitals: Vitals) -> None:
    vitals.condition.stop("stopping")
    assert vitals.judge().state is ServerState.DRAINING


def test_judgement_older_than_a_close_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order closes the gate while the main thread judges by what it knew before."""
    agent = Agent(settings(tmp_path))
    vitals = agent._vitals
    vitals.database.succeed()
    vitals.redis.succeed()
    vitals.condition.started()
    judge = vitals.judge
    judged: list[Verdict] = []

    def judge_and_be_late() -> Verdict:
        verdict = judge()
        if not judged:
            vitals.fenced = "taken for lost"
            vitals.gate.close("taken for lost")
        judged.append(verdict)
        return verdict

    monkeypatch.setattr(vitals, "judge", judge_and_be_late)
    agent._decide()
    assert vitals.gate.reasons == ("taken for lost",)
    assert len(judged) == 2
