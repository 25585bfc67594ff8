"""From the start of the process to the first moment at which it takes a build."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys

from agent import clock
from agent.clock import Deadline
from benchmarks.figure import Effort, Report, Row, Samples, at_most
from benchmarks.ground import Ground, environment, program, start_agent
from tests.acceptance.farm import AgentProcess, Farm

TITLE = "Start"
_POLL_S = 0.005
_LIMIT_S = 30.0
_WORDS = """\
`build-agent run` with byte code on disk, as a package leaves it, to the first `/readyz` that says yes: the
guardian runs, the spool is looked through, the server is on record, both heartbeats beat. Python's own
start, and the command line's, beside it."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure starts, with one before them that leaves the byte code."""
    found = Samples()
    with ground.farm() as farm:
        _ready_s(farm)
        for _ in range(effort.rounds * 2):
            found.add(
                ready=_ready_s(farm),
                help=_command_s(program("build-agent"), "--help"),
                python=_command_s(sys.executable, "-c", "pass"),
            )
    rows = [
        Row(
            name="start to ready",
            unit="s",
            samples=found["ready"],
            meaning="from `fork` to the first 200 of `/readyz`, asked every 5 ms",
            target=at_most(1.0),
        ),
        Row(name="`build-agent --help`", unit="s", samples=found["help"], meaning="the whole command"),
        Row(
            name="`python -c pass`",
            unit="s",
            samples=found["python"],
            meaning="what the interpreter alone takes",
        ),
    ]
    return Report(words=_WORDS, rows=rows)


def _ready_s(farm: Farm) -> float:
    began_mono = clock.mono()
    agent = start_agent(farm, wait_ready=False)
    deadline = Deadline.after(_LIMIT_S)
    while not _is_ready(agent):
        if deadline.is_passed or agent.process is None or agent.process.poll() is not None:
            raise RuntimeError(f"not ready; its log:\n{agent.log()}")
        clock.sleep(_POLL_S)
    seconds = clock.mono() - began_mono
    agent.stop()
    return seconds


def _is_ready(agent: AgentProcess) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", agent.port, timeout=5)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False


def _command_s(*argv: str) -> float:
    began_mono = clock.mono()
    subprocess.run(argv, check=True, env=environment(), stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return clock.mono() - began_mono
