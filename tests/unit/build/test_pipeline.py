"""Pipelines: order within one, side by side among several, and which end decides; with real processes."""

from __future__ import annotations

import threading
from itertools import permutations
from typing import Any

import pytest

from agent.build import pipeline, step
from agent.build.attempt import AttemptContext
from agent.build.pipeline import PASSED, PipelineResult, run_beside, worst
from agent.clock import Deadline
from agent.model.build import OutputChunk, StepEnded, StepStarted
from agent.model.definition import from_document, plan
from agent.model.outcome import Outcome
from agent.model.plan import PlannedPipeline
from agent.output.record import Record
from tests.services import wait_until
from tests.unit.build.conftest import MakeContext


@pytest.fixture
def context(make_context: MakeContext) -> AttemptContext:
    return make_context(kill_grace_s=1.0, step_timeout_s=30.0)


def planned(**document: Any) -> tuple[PlannedPipeline, ...]:
    return plan(from_document({"project": "shop", **document}, origin="test"), branch=None)


def run(context: AttemptContext, *steps: Any) -> PipelineResult:
    [one] = planned(steps=list(steps))
    return pipeline.run(context, one, {})


def beside(context: AttemptContext, **pipelines: list[Any]) -> PipelineResult:
    document = {name: {"steps": steps} for name, steps in pipelines.items()}
    return run_beside(context, planned(pipelines=document), {})


def records(context: AttemptContext) -> list[Record]:
    return [record for batch in context.shop.spool.take(0) for record in batch.records]


def printed(context: AttemptContext) -> dict[int, str]:
    found: dict[int, str] = {}
    for record in records(context):
        if isinstance(record, OutputChunk):
            found[record.step] = found.get(record.step, "") + record.data.decode()
    return found


def outcomes(context: AttemptContext) -> dict[int, Outcome]:
    return {record.step: record.outcome for record in records(context) if isinstance(record, StepEnded)}


# One pipeline.


def test_steps_run_in_their_order_and_all_pass(context: AttemptContext) -> None:
    assert run(context, "echo one > file", "cat file", "echo three") is PASSED
    assert printed(context) == {2: "one\n", 3: "three\n"}
    assert outcomes(context) == dict.fromkeys([1, 2, 3], Outcome.PASSED)


def test_step_is_on_record_before_it_runs_and_after(context: AttemptContext) -> None:
    run(context, {"run": "echo hello", "name": "greet"})
    first, chunk, last = records(context)
    assert isinstance(first, StepStarted)
    assert (first.step, first.name, first.pipeline, first.pipeline_class) == (1, "greet", "main", "build")
    assert isinstance(chunk, OutputChunk)
    assert isinstance(last, StepEnded)
    assert (last.account.bytes_stored, last.account.lines_stored) == (6, 1)


def test_first_step_that_fails_decides_and_the_next_do_not_run(context: AttemptContext) -> None:
    result = run(context, "true", {"run": "exit 3", "name": "unit"}, "echo never")
    assert result == PipelineResult(
        outcome=Outcome.FAILED, detail="step 2 (unit): exit code 3", exit_code=3, step=2
    )
    assert outcomes(context) == {1: Outcome.PASSED, 2: Outcome.FAILED}


def test_always_steps_run_after_a_failure_and_change_no_outcome(context: AttemptContext) -> None:
    always = {"run": "echo cleaned; exit 9", "always": True}
    result = run(context, "exit 3", "echo never", always, "echo never", {"run": "echo too", "always": True})
    assert (result.exit_code, result.step) == (3, 1)
    assert printed(context) == {3: "cleaned\n", 5: "too\n"}


def test_always_step_that_fails_alone_decides(context: AttemptContext) -> None:
    assert run(context, "true", {"run": "exit 4", "always": True}).exit_code == 4


def test_nothing_runs_after_a_cancel_not_even_what_always_does(context: AttemptContext) -> None:
    context.token.request(Outcome.CANCELLED, "by ann")
    assert run(context, {"run": "echo never", "always": True}) is PASSED  # the build knows of the cancel
    assert records(context) == []


def test_cancel_ends_the_step_that_runs_and_the_pipeline_with_it(context: AttemptContext) -> None:
    done: list[PipelineResult] = []
    steps = ["echo begun; sleep 600", {"run": "echo never", "always": True}]
    runner = threading.Thread(target=lambda: done.append(run(context, *steps)))
    runner.start()
    wait_until(lambda: "begun" in "".join(printed(context).values()))
    context.token.request(Outcome.CANCELLED, "by ann")
    runner.join(20)
    assert (done[0].outcome, done[0].detail) == (
        Outcome.CANCELLED,
        "step 1 (echo begun; sleep 600): by ann",
    )
    assert "never" not in "".join(printed(context).values())


def test_step_that_runs_too_long_says_so(context: AttemptContext) -> None:
    result = run(context, {"run": "sleep 600", "timeout": "1s"})
    assert (result.outcome, result.detail) == (Outcome.TIMED_OUT, "step 1 (sleep 600): step")


def test_build_that_has_run_too_long_ends_its_step(context: AttemptContext) -> None:
    context.deadline = Deadline.after(0.5)
    result = run(context, "sleep 600")
    assert (result.outcome, result.detail) == (Outcome.TIMED_OUT, "step 1 (sleep 600): build")


def test_program_that_is_not_there_fails_the_step_by_name(context: AttemptContext) -> None:
    result = run(context, {"run": "x", "shell": ["/no/such/shell"]})
    assert result.outcome is Outcome.FAILED
    assert "/no/such/shell" in (result.detail or "")
    assert "/no/such/shell" in printed(context)[1]


def test_folder_that_is_not_there_fails_the_step_by_name(context: AttemptContext) -> None:
    result = run(context, {"run": "true", "workdir": "no/such"})
    assert result.outcome is Outcome.FAILED
    assert "no/such" in (result.detail or "")


def test_step_that_prints_over_the_limit_is_ended_and_says_so_where_it_was_cut(
    make_context: MakeContext,
) -> None:
    context = make_context(output_limit_bytes=10_000, kill_grace_s=1.0)
    result = run(context, "yes")
    assert result.outcome is Outcome.OUTPUT_LIMIT
    text = printed(context)[1]
    assert text.startswith("y\n" * 5000)
    assert (
        text[10_000:] == "build-agent: the step was ended: output limit: the step printed more than it may\n"
    )
    [ended] = [record for record in records(context) if isinstance(record, StepEnded)]
    assert ended.account.bytes_cut > 0


def test_secret_of_the_build_reaches_its_step_and_no_record(context: AttemptContext) -> None:
    context.redactor.add("hunter2-hunter2")
    [one] = planned(steps=["echo [$TOKEN]"])
    pipeline.run(context, one, {"TOKEN": "hunter2-hunter2"})
    assert "hunter2" not in printed(context)[1]
    assert printed(context)[1].startswith("[")


# Pipelines beside each other.


def test_pipelines_run_at_the_same_time(context: AttemptContext) -> None:
    """Each waits for the other: one after the other would never end."""
    meet = "touch {mine}; until test -e {other}; do sleep 0.02; done"
    result = beside(context, a=[meet.format(mine="a", other="b")], b=[meet.format(mine="b", other="a")])
    assert result is PASSED


def test_each_pipeline_goes_to_its_end_though_another_fails(context: AttemptContext) -> None:
    result = beside(
        context, a=["exit 3"], b=["until test -e c; do sleep 0.02; done", "echo done"], c=["touch c"]
    )
    assert (result.outcome, result.step) == (Outcome.FAILED, 1)
    assert printed(context)[3] == "done\n"


def test_output_of_parallel_steps_is_kept_apart(context: AttemptContext) -> None:
    steps = {name: [f"for i in $(seq 200); do echo {name}$i; done"] for name in "abcd"}
    assert beside(context, **steps) is PASSED
    for number, name in enumerate("abcd", 1):
        assert printed(context)[number] == "".join(f"{name}{i}\n" for i in range(1, 201))


def test_no_pipelines_have_passed(context: AttemptContext) -> None:
    assert run_beside(context, (), {}) is PASSED


def test_fault_of_the_agent_ends_the_other_pipelines_and_is_raised(
    context: AttemptContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = step.record

    def fail_in_a(at: AttemptContext, head: step.StepHead, body: Any) -> step.StepResult:
        if head.pipeline == "a":
            wait_until(lambda: "begun" in "".join(printed(context).values()))
            raise ZeroDivisionError("a mistake of ours")
        return record(at, head, body)

    monkeypatch.setattr(step, "record", fail_in_a)
    with pytest.raises(ZeroDivisionError):
        beside(context, a=["true"], b=["echo begun; sleep 600"])
    assert context.token.cancel is not None
    assert context.token.cancel.outcome is Outcome.INFRASTRUCTURE
    assert outcomes(context) == {2: Outcome.INFRASTRUCTURE}


def test_machine_without_threads_ends_the_pipelines_that_run_before_it_is_told(
    context: AttemptContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else their steps would go on behind the end of their attempt (F14)."""
    start = threading.Thread.start

    def refuse_c(thread: threading.Thread) -> None:
        if thread.name == "pipeline-c":
            wait_until(lambda: "begun" in "".join(printed(context).values()))
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_c)
    with pytest.raises(RuntimeError, match="new thread"):
        beside(context, a=["echo never"], b=["echo begun; sleep 600"], c=["true"], d=["true"])
    assert outcomes(context) == {2: Outcome.INFRASTRUCTURE}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pipeline-")]


# Which end decides.


def ended(outcome: Outcome, at: int) -> PipelineResult:
    return PipelineResult(outcome=outcome, step=at)


def test_all_passed_is_passed() -> None:
    assert worst([PASSED, PASSED]) is PASSED
    assert worst([]) is PASSED


def test_system_goes_before_the_user_and_then_the_earlier_step() -> None:
    in_order = [
        ended(Outcome.DISK_FULL, 4),
        ended(Outcome.INFRASTRUCTURE, 6),
        ended(Outcome.FAILED, 2),
        ended(Outcome.TIMED_OUT, 3),
    ]
    for results in permutations([*in_order, PASSED]):
        assert worst(results) is in_order[0]
    for results in permutations([*in_order[2:], PASSED]):
        assert worst(results) is in_order[2]
