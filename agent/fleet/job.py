"""A command that runs in the background of a machine, whatever becomes of the connection to it.

It is started once with nohup in a session of its own. Its output goes to a file that is followed by the byte, its exit
code to another, written last: a reader that was cut off, or killed and begun anew, goes on where it was.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from agent import clock, log
from agent.fleet.remote import CUT, Remote, RemoteError

_log = log.get("remote")
# A command that died without a word, as with the machine, is begun again so many times; it has to be idempotent.
_STARTS_MAX = 3

_START = """
set -eu
mkdir -p -m 700 {folder}
cd {folder}
[ ! -e {name}.result ] || exit 0
if [ -s {name}.pid ]; then
    # Its command line ends with the script's path and a NUL; another process may have the number by now.
    ! grep -qzxF {folder}/{name}.sh "/proc/$(cat {name}.pid)/cmdline" 2>/dev/null || exit 0
fi
cat >{name}.sh <<'END_OF_JOB'
cd /
{command}
code=$?
echo "$code" >{folder}/{name}.result.partial
mv {folder}/{name}.result.partial {folder}/{name}.result
END_OF_JOB
touch {name}.log
setsid nohup bash {folder}/{name}.sh </dev/null >>{name}.log 2>&1 &
echo $! >{name}.pid
"""
# tail ends a moment after the process has; what is behind `+offset` is read to its end then.
_FOLLOW = 'cd {folder}; tail -c +{start} -s 0.1 --pid="$(cat {name}.pid)" -f {name}.log'
_REST = "cd {folder}; tail -c +{start} {name}.log"


class JobLost(RemoteError):
    """A background command ended again and again without having said how."""


class Job:
    """One background command; `name` is that of its files in `folder` on the machine.

    Args:
        is_repeatable: begin it again if it vanished without an exit code.
    """

    def __init__(
        self, remote: Remote, *, folder: str, name: str, command: Sequence[str], is_repeatable: bool = True
    ) -> None:
        self._remote = remote
        self._folder = folder
        self._name = name
        self._command = shlex.join(command)
        self._starts_left = _STARTS_MAX if is_repeatable else 1
        self._offset = 0

    def run(self, sink: Callable[[bytes], None], *, on_cut: Callable[[str], None]) -> int:
        """Start the command unless it runs or has ended, follow it to its end and return its exit code.

        Args:
            sink: gets the output in order, each byte once; empty bytes several times a second while there is none.
            on_cut: told why, each time the connection was cut.
        Raises: RemoteGone, RemoteRefused; JobLost.
        """
        while True:
            self._start()
            self._follow(sink, on_cut)
            result = self._remote.run(f"cat {self._folder}/{self._name}.result", has_to_pass=False)
            if result.exit_code == 0 and result.output.strip().lstrip("-").isdigit():
                return int(result.output)
            if self._starts_left <= 0:
                raise JobLost(f"{self._name} vanished from the machine without an exit code")
            _log.warning("remote.job_vanished", job=self._name)

    def forget(self) -> None:
        """Have the next run begin anew, though this one has ended."""
        self._remote.run(f"rm -f {self._folder}/{self._name}.*")

    def _start(self) -> None:
        self._starts_left -= 1
        self._remote.run(_START.format(folder=self._folder, name=self._name, command=self._command))

    def _follow(self, sink: Callable[[bytes], None], on_cut: Callable[[str], None]) -> None:
        def take(data: bytes) -> None:
            self._offset += len(data)
            sink(data)

        for form in (_FOLLOW, _REST):
            waits = clock.backoff(0.1, 2.0)
            while True:
                try:
                    script = form.format(folder=self._folder, name=self._name, start=self._offset + 1)
                    self._remote.stream(script, take)
                    break
                except CUT as error:
                    on_cut(str(error) or type(error).__name__)
                    clock.sleep(next(waits))
                    self._remote.connect()
