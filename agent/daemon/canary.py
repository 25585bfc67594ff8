"""The build that an agent runs before it joins: one that can't run a build must not take any.

It goes through what every build goes through: a workspace, a clean environment, the shell, git, a process tree that is
swept, output that is read to its end. It needs neither database nor queue, and puts nothing on record.
"""

from __future__ import annotations

import os

from agent import clock, log
from agent.build import environment, process
from agent.build.cancel import CancelToken
from agent.build.workspace import Workspace, Workspaces
from agent.config import Settings
from agent.errors import ServerUnfit, WorkspaceError
from agent.host import first_boot

LIMIT_S = 60.0
_ID = "boot-canary"
_WORD = "canary 42"
# git, the shell's arithmetic, pipes, a file written and read: what hardly any build does without.
_SCRIPT = """
git init --quiet origin
cd origin
echo "canary $((40 + 2))" >word
git add word
git -c user.name=canary -c user.email=canary@localhost commit --quiet --message canary
cd ..
git clone --quiet origin copy
cat copy/word | tr -d '\\r'
"""
_KEPT_BYTES = 8192

_log = log.get("canary")


class _Sink:
    """Keeps the newest of what the canary prints."""

    has_room = True
    is_over_limit = False

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self.data = (self.data + data)[-_KEPT_BYTES:]

    def flush_due_s(self) -> float | None:
        """Nothing waits."""
        return None

    def flush(self) -> None:
        """Nothing waits."""


def admit(settings: Settings, *, life: str) -> None:
    """Let this server join, or say why not: an unfinished set-up, or a canary that fails, where one is wanted.

    Raises: ServerUnfit.
    """
    first_boot.refuse_unfinished(settings)
    if settings.boot_canary == "on" or (settings.boot_canary == "auto" and settings.image_file.exists()):
        run(settings, life=life)


def run(settings: Settings, *, life: str) -> float:
    """Run the canary; return how many seconds it took.

    Raises: ServerUnfit with what it said and what to look at.
    """
    began_mono = clock.mono()
    try:
        workspaces = Workspaces(settings.workspace_dir)
        workspace = workspaces.create(_ID, 1)
    except WorkspaceError as error:
        raise ServerUnfit(f"the boot canary has no workspace: {error}") from error
    sink, token = _Sink(), CancelToken()
    try:
        ended = process.run(
            process.Command(
                argv=[*settings.shell, _SCRIPT],
                cwd=workspace.path,
                env={
                    "PATH": environment.DEFAULT_PATH,
                    "LANG": "C.UTF-8",
                    "HOME": str(workspace.path),
                    **{name: os.environ[name] for name in settings.environment_allow if name in os.environ},
                },
                token=_ID,
                life=life,
            ),
            sink,
            process.Limits(
                step=clock.Deadline.after(LIMIT_S),
                build=clock.Deadline(None),
                no_output_s=None,
                grace_s=1.0,
                leaked_pipe_wait_s=settings.leaked_pipe_wait_s,
            ),
            token,
        )
    except OSError as error:
        raise ServerUnfit(f"the boot canary can't be started: {error.strerror}: {error.filename}") from error
    finally:
        token.close()
        _discard(workspaces, workspace)
    said = " / ".join(sink.data.decode("utf-8", "replace").split("\n")).strip(" /")
    if ended.cancel is not None or ended.exit_code != 0 or _WORD not in said:
        how = f"did not end in {LIMIT_S:g} s" if ended.cancel else f"ended with {ended.exit_code}"
        raise ServerUnfit(
            f"the boot canary {how}, so this server can't build: {said or 'it printed nothing'}"
        )
    seconds = clock.mono() - began_mono
    _log.info("canary.passed", seconds=round(seconds, 3))
    return seconds


def _discard(workspaces: Workspaces, workspace: Workspace) -> None:
    try:
        workspaces.remove(workspace)
    except WorkspaceError as error:
        _log.warning("workspace.left", str(error), build=_ID, attempt=1)
