"""Commands of the host, each with a time limit and, when it fails, words for a person.

Owns which Debian package brings a program. Knows nothing of machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from agent.fleet.provider import ProviderError, ProviderUnavailable

# A user's PATH often lacks the folders of root's programs.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PACKAGES = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "mke2fs": "e2fsprogs",
}
_TOLD_LINES = 8


def need(*programs: str) -> None:
    """Raise ProviderError, with what to do, unless this is root's process and the programs are there."""
    if os.geteuid() != 0:
        raise ProviderError(
            "local machines need root: mounts and network namespaces are root's to make; use sudo"
        )
    missing = [name for name in programs if shutil.which(name, path=PATH) is None]
    if missing:
        packages = " ".join(sorted({_PACKAGES.get(name, name) for name in missing}))
        raise ProviderError(f"local machines need {', '.join(missing)}: apt install {packages}")


def run(
    argv: Sequence[str],
    *,
    what: str,
    limit_s: float,
    stdin: str = "",
    cwd: Path | None = None,
    keep_fds: Collection[int] = (),
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run a command, which starts with root's PATH and nothing else of this process' environment, and return its output.

    Args:
        what: what is attempted, as in "could not <what>".
        keep_fds: descriptors that the command inherits.
        environ: variables beside PATH and LC_ALL.
    Raises: ProviderError with its last lines; ProviderUnavailable when the time was over, after killing its session.
    """
    env = {"PATH": PATH, "LC_ALL": "C.UTF-8", **(environ or {})}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            pass_fds=tuple(keep_fds),
            env=env,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        package = _PACKAGES.get(argv[0], argv[0])
        raise ProviderError(f"could not {what}: there is no {argv[0]}; apt install {package}") from error
    with process:
        try:
            output, complaint = process.communicate(stdin, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            _kill_session(process)
            raise ProviderUnavailable(
                f"could not {what}: {argv[0]} took longer than {limit_s:g} s"
            ) from error
        except BaseException:
            _kill_session(process)  # Ctrl-C: nothing goes on behind the user's back
            raise
    if process.returncode != 0:
        told = last_lines(complaint or output)
        raise ProviderError(f"could not {what}: {argv[0]} ended with {process.returncode}: {told}")
    return output


def proxies() -> dict[str, str]:
    """Return the variables that name proxies, for commands that fetch something."""
    names = ("http_proxy", "https_proxy", "no_proxy")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def last_lines(text: str) -> str:
    """Return the last lines of a program's complaint, as one line."""
    return " / ".join(line.strip() for line in text.strip().splitlines()[-_TOLD_LINES:]) or "it said nothing"


def _kill_session(process: subprocess.Popen[str]) -> None:
    # Not yet waited for, so the number is still its own.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
