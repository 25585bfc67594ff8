"""A process beside the agent that ends the agent's steps when the agent can't: when it has died, or hangs.

Without it, a step of an agent that was killed or stopped would run on while the next attempt runs elsewhere.
(Under systemd the unit's cgroup and the watchdog do much of this, but not while the agent drains.) The guardian
is a shell that reads from a pipe only the agent holds: each line says for how many seconds the lease still
holds. No line in that time, or the end of the pipe, and it kills. So it needs next to no memory, and nobody's
promise: a killed agent closes the pipe, a stopped one is silent.

Every process of a step carries `LIFE_MARKER` in its environment; its value names one life of the agent.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import uuid
from pathlib import Path

from agent import clock, log
from agent.clock import Deadline
from agent.errors import AgentFailed
from agent.host import processes

LIFE_MARKER = "BUILD_LIFE_TOKEN"
_LIFE_FILE = "life"
# Three rounds: what forks while the first goes through /proc is met by the next. `grep -z` takes the entries of
# an environment as lines, `-x` matches whole ones; its own environment is empty.
_SCRIPT = """
end_steps() {
  for round in 1 2 3; do
    for path in $(grep -lzxF "$1" /proc/[0-9]*/environ 2>/dev/null); do
      pid=${path#/proc/}
      kill -KILL "${pid%/environ}" 2>/dev/null
    done
  done
}
left=86400
while :; do
  read -r -t "$left" word
  status=$?
  if [ "$status" -eq 0 ]; then
    left=$word
  elif [ "$status" -gt 128 ]; then
    end_steps "$1"
    left=86400
  else
    end_steps "$1"
    exit
  fi
done
"""

_log = log.get("guardian")


class Guardian:
    """Starts with a life of the agent and ends with it."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _LIFE_FILE
        self.life = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._held_until_mono: float | None = None
        self._acted_at_mono = float("-inf")

    def end_former_life(self) -> int:
        """Kill what a former life of the agent left running; return how many processes.

        Raises: AgentFailed when something can't be killed: a build must not begin beside it.
        """
        try:
            former = self._path.read_text(errors="replace").strip()
        except OSError:
            return 0
        # What a power cut left of the file (nothing, or NULs) names no life; nothing of one outlived it either.
        if not re.fullmatch("[0-9a-f]{32}", former):
            return 0
        count = 0
        deadline = Deadline.after(5.0)
        while pids := processes.by_environment(f"{LIFE_MARKER}={former}".encode()):
            count = max(count, len(pids))
            processes.kill(pids, signal.SIGKILL)
            if deadline.is_passed:
                raise AgentFailed(
                    f"processes {pids} of the agent's former life can't be killed; reboot the server"
                )
            clock.sleep(0.02)
        if count:
            _log.warning("guardian.former_life_ended", f"{count} processes of the agent's former life killed")
        return count

    def start(self) -> None:
        """Put this life on record and begin to watch it.

        Raises: AgentFailed when the state directory or the machine refuses.
        """
        try:
            self._path.write_text(f"{self.life}\n")
            self._process = subprocess.Popen(
                ["/bin/bash", "-c", _SCRIPT, "build-agent-guardian", f"{LIFE_MARKER}={self.life}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise AgentFailed(f"the guardian can't be started: {error}") from error
        if self._process.stdin is not None:
            # A guardian that is stopped must not stop the agent.
            os.set_blocking(self._process.stdin.fileno(), False)

    def hold_for(self, seconds: float) -> None:
        """Say for how long the lease still holds; when that time is over without another word, it kills."""
        process = self._process
        if process is None or process.stdin is None:
            return
        now_mono = clock.mono()
        if self._held_until_mono is not None and now_mono > self._held_until_mono:
            self._acted_at_mono = now_mono
        self._held_until_mono = now_mono + max(seconds, 0.1)
        # A pipe that is full, or of a guardian that was killed: it is started anew where its end is seen.
        with contextlib.suppress(OSError, ValueError):
            os.write(process.stdin.fileno(), f"{max(seconds, 0.1):.3f}\n".encode())

    def has_acted_since(self, mono: float) -> bool:
        """Whether the time given to it ran out after `mono`, so that it has ended what ran then.

        For an agent that wakes from a hang: what a step of it died of was not the user's doing.
        """
        is_over = self._held_until_mono is not None and clock.mono() > self._held_until_mono
        return is_over or self._acted_at_mono >= mono

    @property
    def pid(self) -> int | None:
        """The guardian's process id."""
        return None if self._process is None else self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it is still on watch."""
        return self._process is not None and self._process.poll() is None

    def dismiss(self) -> None:
        """End the watch: the agent has ended its steps itself."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        self._path.unlink(missing_ok=True)
