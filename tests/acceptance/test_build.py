"""One build from end to end, as everybody else's tests take it for granted."""

from __future__ import annotations

from agent.model.outcome import Outcome
from tests.acceptance.farm import Farm


def test_build_runs_and_its_output_is_stored(farm: Farm) -> None:
    farm.agent()
    build_id = farm.submit({"steps": ["echo one", "printf 'no line end'"]})
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.output(build_id, step=1) == b"one\n"
    assert farm.output(build_id, step=2) == b"no line end"


def test_failed_step_ends_its_pipeline_but_for_always_steps(farm: Farm) -> None:
    farm.agent()
    build_id = farm.submit({"steps": ["exit 3", "echo never", {"run": "echo cleaned", "always": True}]})
    build = farm.wait_ended(build_id)
    assert build.outcome is Outcome.FAILED
    assert "exit code 3" in (build.detail or "")
    assert farm.text(build_id) == "cleaned\n"
    assert farm.attempts(build_id) == [(1, Outcome.FAILED)]
