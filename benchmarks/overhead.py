"""What a step costs beyond its shell."""

from __future__ import annotations

import subprocess

from agent import clock
from benchmarks.figure import Effort, Report, Row, Samples
from benchmarks.ground import Ground, start_agent, wait_ended
from tests.acceptance.farm import Farm

TITLE = "Cost of a step"
_SHELL = ("bash", "-euo", "pipefail", "-c", "true")
_WORDS = """\
One build of {count} steps, each `true`, by its time from the claim to the end; and as many `bash -euo
pipefail -c true`, one after another, from Python's `subprocess`. The difference is what it costs to clean a
step's environment, put its start and end on record, watch its limits and see that nothing of it is left."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure both, turn by turn."""
    count = effort.pick(500, 150)
    found = Samples()
    with ground.farm() as farm:
        start_agent(farm)
        for _ in range(effort.rounds):
            shell_ms, step_ms = _shell_ms(count), _step_ms(farm, count)
            found.add(shell=shell_ms, step=step_ms, over=step_ms - shell_ms)
    rows = [
        Row(
            name="a step",
            unit="ms",
            samples=found["step"],
            meaning="the build's time by the number of its steps",
        ),
        Row(
            name="the shell alone",
            unit="ms",
            samples=found["shell"],
            meaning="from `subprocess.run` to its return",
        ),
        Row(
            name="the agent's part",
            unit="ms",
            samples=found["over"],
            meaning="the difference, round by round",
        ),
    ]
    return Report(words=_WORDS.format(count=count), rows=rows)


def _step_ms(farm: Farm, count: int) -> float:
    build_id = farm.submit({"steps": ["true"] * count})
    wait_ended(farm, build_id)
    build = farm.build(build_id)
    if build.started_at is None or build.ended_at is None:
        raise RuntimeError("the build has no times")
    return (build.ended_at - build.started_at).total_seconds() / count * 1000


def _shell_ms(count: int) -> float:
    began_mono = clock.mono()
    for _ in range(count):
        subprocess.run(_SHELL, check=True, stdin=subprocess.DEVNULL)
    return (clock.mono() - began_mono) / count * 1000
