"""What the delivery tests share: steps that leave proof of when they ran, proxies, deploys.

What the database says of an attempt is one thing, what its processes do another: a witness reads files that
steps wrote, on one clock for all of them (seconds since boot).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from agent.clock import Deadline, sleep
from agent.queue.private import PrivateRedis
from agent.queue.submit import new_build, submit
from tests.acceptance.farm import Farm
from tests.services import TcpProxy, wait_until

BEAT_S = 0.05


class Witness:
    """Steps of this witness write a beat every 50 ms, and print a line with it, until `release`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.beats_path = folder / "beats"
        self.runs_path = folder / "runs"
        self._go = folder / "go"

    def held(self) -> str:
        """Return a command that beats until `release`, its attempt's number in every line it prints."""
        go, beats = shlex.quote(str(self._go)), shlex.quote(str(self.beats_path))
        return (
            # Nobody may read what it prints any more: a witness is not stopped by that, only by a signal.
            f"trap '' PIPE\n{self.ran()}\n"
            "i=0\n"
            f"while [ ! -e {go} ]; do\n"
            "  read -r up _ </proc/uptime\n"
            f'  echo "$BUILD_ID $BUILD_ATTEMPT $up" >>{beats}\n'
            '  echo "attempt $BUILD_ATTEMPT line $i" 2>/dev/null || :; i=$((i + 1))\n'
            f"  sleep {BEAT_S}\n"
            "done\n"
            'echo "attempt $BUILD_ATTEMPT line end"'
        )

    def ran(self) -> str:
        """Return a command that notes that it ran, once."""
        return f'echo "$BUILD_ID $BUILD_ATTEMPT" >>{shlex.quote(str(self.runs_path))}'

    def release(self) -> None:
        """Let every held step end."""
        self._go.touch()

    @property
    def is_released(self) -> bool:
        """Whether held steps end by themselves now."""
        return self._go.exists()

    def runs(self, build_id: str) -> list[int]:
        """Return the attempt of each time that a step of the build ran."""
        if not self.runs_path.exists():
            return []
        rows = [line.split() for line in self.runs_path.read_text().splitlines()]
        return [int(row[1]) for row in rows if row[0] == build_id]

    def lives(self, build_id: str) -> Mapping[int, tuple[float, float]]:
        """Return the first and last beat of each attempt, seconds since boot."""
        lives: dict[int, tuple[float, float]] = {}
        text = self.beats_path.read_text() if self.beats_path.exists() else ""
        # A last line that is being written has no end yet.
        for line in text.splitlines()[: None if text.endswith("\n") else -1]:
            build, number, up = line.split()
            if build == build_id:
                first, last = lives.get(int(number), (float(up), float(up)))
                lives[int(number)] = (min(first, float(up)), max(last, float(up)))
        return lives

    def wait_alive(self, build_id: str, attempt: int, timeout_s: float = 40.0) -> float:
        """Wait until an attempt has beaten; return when it did first."""
        wait_until(lambda: attempt in self.lives(build_id), timeout_s, f"attempt {attempt} to beat")
        return self.lives(build_id)[attempt][0]

    def is_still(self, build_id: str, attempt: int, for_s: float = 0.5) -> bool:
        """Whether an attempt beats no more; looks for `for_s`, ten beats by default."""
        before = self.lives(build_id).get(attempt)
        deadline = Deadline.after(for_s)
        while not deadline.is_passed:
            sleep(BEAT_S)
        return self.lives(build_id).get(attempt) == before

    def assert_alone(self, build_id: str, attempt: int) -> None:
        """Wait until an attempt has run for a second; fail if one before it was alive in that time.

        To be called before `release`: what ends at once can't be met by anybody.
        """
        until = self.wait_alive(build_id, attempt) + 1.0
        wait_until(lambda: self.lives(build_id)[attempt][1] > until, 10, f"attempt {attempt} to go on")
        lives = sorted(self.lives(build_id).items())
        for (former, (_, last)), (later, (first, _)) in pairwise(lives):
            assert last < first, f"attempt {former} lived until {last}, attempt {later} from {first} on"

    def assert_output_is_its_own(self, farm: Farm, build_id: str, *, is_whole: bool = True) -> None:
        """Fail if an attempt's stored output holds a foreign line, a gap, or (newest attempt) lacks its end."""
        for number, _ in farm.attempts(build_id):
            lines = farm.text(build_id, attempt=number, step=1).splitlines()
            # What was being printed when the step was killed, and what the agent says of it.
            lines = [line for line in lines if not line.startswith("build-agent: ")]
            owners = {match[1] for line in lines if (match := re.match(r"attempt (\d+) line ", line))}
            assert owners <= {str(number)}, f"attempt {number} has lines of {owners}"
            numbers = [int(line.rpartition(" ")[2]) for line in lines if line[-1:].isdigit()]
            assert numbers == list(range(len(numbers))), f"attempt {number}: {numbers[:5]} ... {numbers[-5:]}"
        if is_whole:
            assert lines[-1] == f"attempt {number} line end"


@contextmanager
def proxied_database(url: str) -> Iterator[tuple[TcpProxy, str]]:
    """Yield a proxy in front of a PostgreSQL, and the URL through it."""
    parts = urlsplit(url)
    with TcpProxy((parts.hostname or "", parts.port or 5432)) as proxy:
        yield proxy, parts._replace(netloc=f"{parts.username}@127.0.0.1:{proxy.port}").geturl()


@contextmanager
def proxied_redis(server: PrivateRedis) -> Iterator[tuple[TcpProxy, str]]:
    """Yield a proxy in front of a Redis, and the URL through it."""
    with TcpProxy(server.socket_path) as proxy:
        yield proxy, f"redis://127.0.0.1:{proxy.port}/0"


def submit_deploy(farm: Farm, command: str, *, retry_safe: bool = False, **more: object) -> str:
    """Submit a build of one step and one deploy, of the branch `main`; return its id."""
    deploy = {"branches": ["main"], "retry_safe": retry_safe, "steps": [command]}
    document = {"project": "test", "steps": ["true"], "deploy": {"production": deploy}, **more}
    return submit(farm.store, farm.carrier, replace(new_build(document), branch="main")).build.id
