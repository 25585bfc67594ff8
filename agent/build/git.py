"""Git as this agent runs it: remotes read from URLs, hardening, queries captured, complaints understood.

Nothing of a repository is executed: no hooks, no filters (Git LFS files stay the pointers they are, for a
step to pull), no submodule transport but those of remotes. Knows neither mirrors nor checkouts.
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from agent.clock import Deadline, backoff, sleep
from agent.errors import SourceError, SourceUnavailable
from agent.host import processes

REMOTE_TRANSPORTS = "https:ssh:git"
_LATE = "the checkout of {} took longer than it may; raise git_timeout_s"
_PASSED_ON = (
    *("PATH", "HOME", "SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
# BatchMode: never ask. The rest notices a peer that has gone silent within a minute and a half.
_SSH = "ssh -oBatchMode=yes -oConnectTimeout=30 -oServerAliveInterval=15 -oServerAliveCountMax=4"
_HARDENING = (
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("gc.autoDetach", "false"),  # a collection in the background would outlive the mirror's lock
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
    ("advice.detachedHead", "false"),
)
# The values come by the environment: a command line is readable by every process of the machine.
_CREDENTIAL_HELPER = (
    '!f() { test "$1" = get || return 0; '
    'printf "username=%s\\npassword=%s\\n" "$BUILD_AGENT_GIT_USER" "$BUILD_AGENT_GIT_PASSWORD"; }; f'
)
POLL_S = 0.1
_CAPTURE_LIMIT_BYTES = 4 << 20

# What git, curl and ssh say (LC_ALL=C). What no list knows counts as unavailable: a retry does no harm.
_NETWORK = re.compile(
    r"could not resolve|unable to look up|temporary failure|timed? ?out|unreachable"
    r"|connection (refused|reset|closed by)|early EOF|RPC failed|error: (429|5\d\d)|No space left"
    r"|rate limit|SSL_ERROR|gnutls",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"authentication failed|could not read (username|password)|permission denied|terminal prompts disabled"
    r"|error: (401|403)|host key verification failed|invalid credentials",
    re.IGNORECASE,
)
_MISSING = re.compile(
    r"not found|error: 404|not appear to be a git repository|does not exist|not exported|no such|not our ref"
    r"|couldn't find remote ref|unadvertised object|not allowed|did not contain",
    re.IGNORECASE,
)


class Runner(Protocol):
    """Runs a command whose output belongs to the build's checkout step."""

    def run(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], deadline: Deadline) -> int:
        """Run `argv` with exactly `env`, stream what it prints, return its exit code when its tree is gone.

        At the deadline the tree is killed and any code but 0 returned. May raise to end the checkout.
        """


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a source comes from, as its URL says; the credentials apart from it."""

    url: str  # without credentials
    name: str  # the mirror's directory
    local: Path | None = None
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


def parse_url(url: str) -> Remote:
    """Read a source's URL. Raises: SourceError when it is none, or of a transport that is not allowed."""
    if re.search(r"[\x00-\x20\x7f]", url) or url.startswith("-") or re.match(r"[A-Za-z0-9+.-]+::", url):
        raise SourceError(
            "the source URL holds spaces or control characters, begins with a dash or names a helper"
        )
    user = password = ""
    local = None
    clean = url
    if url.startswith("/"):
        local = Path(url)
    elif "://" in url:
        parts = urlsplit(url)
        userinfo, _, host = parts.netloc.rpartition("@")
        user, _, password = (unquote(text) for text in userinfo.partition(":"))
        if parts.scheme == "file":
            local = Path(unquote(parts.path))
        elif parts.scheme not in REMOTE_TRANSPORTS.split(":") or not host or host.startswith("-"):
            raise SourceError(f"sources come over https, ssh or git, not {parts.scheme}://; correct the URL")
        if re.search(r"[\x00-\x1f]", user + password):
            raise SourceError("the credentials in the source URL hold control characters")
        shown = f"{userinfo.partition(':')[0]}@{host}" if parts.scheme == "ssh" and user else host
        clean = parts._replace(netloc=shown).geturl()
    elif not re.match(r"(?:[\w.][\w.-]*@)?[\w.\[][^/]*:[^:]", url):
        raise SourceError(
            f"{url!r} is no git URL; write https://host/path, ssh://host/path or user@host:path"
        )
    slug = re.sub(r"[^A-Za-z0-9]+", "-", clean.partition("://")[2] or clean).strip("-")[-60:]
    # With the credentials: whoever has others, or none, is for the remote to refuse, not for us to serve.
    return Remote(clean, f"{slug}-{hashlib.sha256(url.encode()).hexdigest()}", local, user, password)


def secrets_in_url(url: str | None) -> list[str]:
    """Return what a source URL holds for the redactor, as written and decoded; call it before `checkout`.

    A user name alone counts over https: tokens are written so.
    """
    userinfo = urlsplit(url).netloc.rpartition("@")[0] if url and "://" in url else ""
    user, _, password = userinfo.partition(":")
    is_token = (url or "").startswith("https:") and password in ("", "x-oauth-basic")
    token = user if is_token else ""
    return sorted({form for text in (password, token) if text for form in (text, unquote(text))})


@dataclass(frozen=True, slots=True)
class Captured:
    """What a query ended with and printed."""

    code: int
    out: bytes
    err: str


def _capture(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], deadline: Deadline) -> Captured:
    """Run a query: at most 4 MiB of output, its process group killed at the deadline and at the end."""
    with processes.unmarked():
        started = subprocess.Popen(
            argv,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    with started as process, selectors.DefaultSelector() as selector:
        buffers: dict[object, bytearray] = {}
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                buffers[pipe] = bytearray()
                selector.register(pipe, selectors.EVENT_READ)
        leaked = Deadline(None)
        try:
            while process.poll() is None or (selector.get_map() and not leaked.is_passed):
                # With no pipe left, select is the pause between two looks at the process.
                for key, _ in selector.select(POLL_S if selector.get_map() else 0.002):
                    chunk = os.read(key.fd, 65536)
                    buffers[key.fileobj] += chunk
                    if not chunk:
                        selector.unregister(key.fileobj)
                if process.returncode is not None and leaked.at_mono is None:
                    leaked = Deadline.after(1.0)  # an ssh master that goes on keeps the pipe open
                _check_bounds(argv, deadline, sum(map(len, buffers.values())))
        except BaseException:
            if process.poll() is None:  # not reaped, so the group's id is still its own
                os.killpg(process.pid, signal.SIGKILL)
            raise
        out, err = (bytes(buffer) for buffer in buffers.values())
        return Captured(process.returncode, out, err.decode("utf-8", "replace").strip())


def _check_bounds(argv: Sequence[str], deadline: Deadline, captured_bytes: int) -> None:
    verb = next((word for word in argv[1:] if not word.startswith("-")), "")
    if deadline.is_passed:
        raise SourceUnavailable(f"git {verb} took longer than the checkout may; raise git_timeout_s")
    if captured_bytes > _CAPTURE_LIMIT_BYTES:
        raise SourceUnavailable(f"git {verb} printed more than expected")


def classified(err: str, remote: Remote) -> SourceError | SourceUnavailable:
    """Turn git's complaint about a remote into whose fault it is and what to do."""
    lines = [line for line in err.splitlines() if line.strip()]

    def said(pattern: re.Pattern[str]) -> str:
        return next((line[:300] for line in lines if pattern.search(line)), "")

    if why := said(_NETWORK):
        return SourceUnavailable(f"{remote.url} can't be reached now: {why}")
    if why := said(_REFUSED):
        return SourceError(
            f"{remote.url} refused this server: {why}; see to its credentials (ssh: key and known_hosts)"
        )
    if why := said(_MISSING):
        return SourceError(f"{remote.url} does not have what was asked for: {why}; correct the source")
    why = lines[-1][:300] if lines else "no reason given"
    return SourceUnavailable(f"git could not fetch from {remote.url}: {why}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Git:
    """Git for one checkout: whose source, where to, in whose sight, until when."""

    remote: Remote
    workspace: Path
    runner: Runner
    deadline: Deadline
    environ: Mapping[str, str] = field(repr=False)
    first_wait_s: float

    def env(self, transports: str | None = None) -> dict[str, str]:
        """Return git's whole environment; by default only the remote's own transports are allowed."""
        remote = self.remote
        config = [*_HARDENING, ("safe.directory", str(self.workspace))]
        env = {name: self.environ[name] for name in _PASSED_ON if name in self.environ}
        env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1"}
        env |= {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "LC_ALL": "C",
            "GIT_LFS_SKIP_SMUDGE": "1",
        }
        # Stronger than protocol.allow=never: no configuration of a repository can widen it.
        env["GIT_ALLOW_PROTOCOL"] = transports or ("file" if remote.local else REMOTE_TRANSPORTS)
        env.setdefault("GIT_SSH_COMMAND", _SSH)
        if remote.url.startswith("https:") and (remote.user or remote.password):
            parts = urlsplit(remote.url)
            # Bound to the host, so that neither a redirect nor a submodule elsewhere is given them.
            config.append((f"credential.{parts.scheme}://{parts.netloc}.helper", _CREDENTIAL_HELPER))
            env |= {"BUILD_AGENT_GIT_USER": remote.user, "BUILD_AGENT_GIT_PASSWORD": remote.password}
        for number, (name, value) in enumerate(config):
            env |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
        return env | {"GIT_CONFIG_COUNT": str(len(config))}

    def run(self, *args: str, cwd: Path, transports: str | None = None) -> bool:
        """Run a git command in the step's sight; tell whether it succeeded."""
        self.check_deadline()
        code = self.runner.run(["git", *args], cwd=cwd, env=self.env(transports), deadline=self.deadline)
        self.check_deadline(failed=code != 0)
        return code == 0

    def ask(self, *args: str, cwd: Path, transports: str | None = None) -> Captured:
        """Run a git query out of the step's sight."""
        return _capture(["git", *args], cwd=cwd, env=self.env(transports), deadline=self.deadline)

    def check_deadline(self, *, failed: bool = True) -> None:
        """Raise: SourceUnavailable when the time is up and the work is not done."""
        if failed and self.deadline.is_passed:
            raise SourceUnavailable(_LATE.format(self.remote.url))

    def retry(self, attempt: Callable[[], SourceError | SourceUnavailable | None]) -> None:
        """Repeat what failed for the moment: at most six tries in half a minute, never past the deadline."""
        for tries, wait_s in enumerate(backoff(self.first_wait_s), start=1):
            problem = attempt()
            if problem is None:
                return
            left_s = self.deadline.remaining_s
            if isinstance(problem, SourceError) or tries >= 6 or (left_s is not None and wait_s >= left_s):
                raise problem
            pause(wait_s, self.deadline)

    def upload_pack(self) -> list[str]:
        """Return the option that lets git read a local repository of another owner: this one, no other."""
        if self.remote.local is None:
            return []
        trusted = [f"safe.directory={self.remote.local / name}" for name in ("", ".git")]
        options = [word for setting in trusted for word in ("-c", setting)]
        return ["--upload-pack", shlex.join(["git", *options, "upload-pack"])]


def pause(wait_s: float, deadline: Deadline) -> None:
    """Wait in small pieces, so that a deadline that is brought forward ends it."""
    end = Deadline.after(wait_s)
    while not (end.is_passed or deadline.is_passed):
        sleep(min(POLL_S, end.remaining_s or 0.0))
