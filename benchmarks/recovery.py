"""From the death of an agent to its build running on another."""

from __future__ import annotations

from agent import clock
from benchmarks.figure import Effort, Report, Row, Samples, at_most
from benchmarks.ground import Ground, start_agent

TITLE = "Recovery"
_WAIT_S = 120.0
_WORDS = """\
Two agents with default settings (a lease of 30 s). The one that runs a build is killed with SIGKILL and
does not come back. The other notices, closes the attempt as lost, queues the build again, and runs it. `rq
worker` needs 60 to 800 s to notice, and then marks the job as failed unless it was enqueued with `Retry`."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure two rounds at most: each takes a whole lease."""
    found = Samples()
    for _ in range(min(effort.rounds, 2)):
        found.add(seconds=_recovery_s(ground))
    row = Row(
        name="killed to running elsewhere",
        unit="s",
        samples=found["seconds"],
        meaning="from SIGKILL to the first line of the second attempt in the database",
        target=at_most(45),
    )
    return Report(words=_WORDS, rows=[row])


def _recovery_s(ground: Ground) -> float:
    with ground.farm() as farm:
        first = start_agent(farm, slots=1)
        build_id = farm.submit("echo begun; sleep 600")
        farm.wait_running(build_id, printed="begun")
        start_agent(farm, slots=1)
        # The other one leads soon after the death of the first at the latest; let it settle as it would have.
        clock.sleep(5.0)
        began_mono = clock.mono()
        first.kill()
        farm.wait_running(build_id, attempt=2, printed="begun", timeout_s=_WAIT_S)
        return clock.mono() - began_mono
