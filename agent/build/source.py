"""Checkouts: from a git remote by way of a mirror on this server, or from a local directory.

Owns what a definition may ask for and the workspace's copy of it. What git may do is in `git`, what a server
keeps of a repository in `mirror`.

A workspace gets a copy of the mirror's objects. Measured on 170 MB of objects whose checkout takes 1.2 s:
hard links 10 ms, a copy 110 ms, alternates 14 ms, a clone with `depth` 2.1 s (it packs anew). Hard links
share inodes that a build could make writable, alternates break when the mirror is pruned and tell its path;
the copy buys both off for 9 % of the checkout.
"""

from __future__ import annotations

import fcntl
import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from agent.build.git import REMOTE_TRANSPORTS, Git, Runner, classified, parse_url, secrets_in_url
from agent.build.mirror import Mirror, Mirrors, disk_problem, remove
from agent.clock import Deadline
from agent.errors import SourceError, SourceUnavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRequest:
    """What to check out: `url` (git), else `path` (local repository or plain folder), else nothing.

    `commit` (7 to 64 hex digits) wins over `branch` (a tag will do); with neither, the default branch.
    `depth` cuts the history of the workspace, never that of the mirror.
    """

    url: str | None = None
    path: Path | None = None
    commit: str | None = None
    branch: str | None = None
    depth: int | None = None
    submodules: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceResult:
    """What was checked out; the fields are `None` where the source has no such thing."""

    commit: str | None = None
    branch: str | None = None
    message: str | None = None
    author: str | None = None
    secrets_in_url: list[str] = field(default_factory=list, repr=False)


def checkout(
    mirrors: Mirrors, request: SourceRequest, workspace: Path, run: Runner, deadline: Deadline
) -> SourceResult:
    """Fill an empty directory with the source, HEAD detached at the commit.

    A local repository is cloned (what is committed, not what lies about); a plain folder is copied, its
    symlinks as symlinks, without sockets and devices. Without a source the directory stays empty.
    Raises: SourceError (the request or the remote says no: do not retry); SourceUnavailable (network,
        disk or time: a later attempt may succeed); whatever `run` raises.
    """
    url = request.url
    if url is None and request.path is not None:
        path = mirrors.allowed(request.path)
        if not ((path / ".git").exists() or (path / "objects").is_dir()):
            _copy_folder(path, workspace, deadline)
            return SourceResult()
        url = str(path)
    if url is None:
        return SourceResult()
    remote = parse_url(url)
    if remote.local is not None:
        mirrors.allowed(remote.local)
    git = Git(
        remote=remote,
        workspace=workspace,
        runner=run,
        deadline=deadline,
        environ=mirrors.environ,
        first_wait_s=mirrors.first_wait_s,
    )
    call = _Checkout(mirrors, Mirror(mirrors.root, git), request)
    try:
        commit, branch = call.run()
    except OSError as error:
        raise SourceUnavailable(f"the checkout failed on this server: {error}; see to its disk") from error
    if request.submodules:
        call.submodules()
    return call.described(commit, branch)


@dataclass(frozen=True, slots=True)
class _Checkout:
    """One checkout of a git source on its way."""

    mirrors: Mirrors
    mirror: Mirror
    request: SourceRequest

    @property
    def git(self) -> Git:
        return self.mirror.git

    @property
    def workspace(self) -> Path:
        return self.git.workspace

    def _locked(self, kind: int) -> AbstractContextManager[None]:
        return self.mirrors.locked(self.mirror.path.name, kind, self.git.deadline)

    def run(self) -> tuple[str, str | None]:
        """Check out, from a mirror that is made anew once if it turns out to be broken; return what it is."""
        is_rebuilt = False
        while True:
            commit, branch = self._ensure()
            with self._locked(fcntl.LOCK_SH):
                if self.mirror.find_commit(commit) is None:
                    continue  # pruned by another slot since
                if self._fill(commit, branch):
                    return commit, branch
            if problem := disk_problem(self.workspace):
                raise problem
            with self._locked(fcntl.LOCK_EX):
                if is_rebuilt or self.mirror.is_sound(commit):
                    raise SourceError(f"git could not check out {commit}; the step's output says why")
                remove(self.mirror.path)
            is_rebuilt = True
            for leftover in self.workspace.iterdir():
                remove(leftover)

    def _ensure(self) -> tuple[str, str | None]:
        """Return commit and branch to check out, in the mirror by then; fetch only for what is not."""
        mirror, url = self.mirror, self.git.remote.url
        wanted, branch = self._checked_names()
        if wanted is not None:
            with self._locked(fcntl.LOCK_SH):
                if found := mirror.find_commit(wanted):
                    return found, branch
        elif branch is None:
            wanted, branch = mirror.remote_head()
        with self._locked(fcntl.LOCK_EX):
            self.mirrors.tidy(mirror)
            is_new = not mirror.path.exists()
            found = mirror.find_commit(wanted) if wanted else None
            if found is None:
                mirror.update()
            if found is None and wanted is None:
                found = mirror.find_commit(f"refs/heads/{branch}") or mirror.find_commit(
                    f"refs/tags/{branch}"
                )
                if found is None:
                    raise SourceError(f"{url} has no branch or tag {branch!r}; correct the source")
            elif found is None and wanted is not None:
                found = mirror.find_commit(wanted)
                if found is None and len(wanted) in (40, 64):
                    mirror.fetch_commit(wanted)
                    found = mirror.find_commit(wanted)
            if found is None:
                raise SourceError(f"{url} has no commit {wanted}; push it, or correct the source")
        if is_new and self.mirrors.limit_bytes:
            self.mirrors.prune(self.mirrors.limit_bytes, keep=mirror.path.name)
        return found, branch

    def _checked_names(self) -> tuple[str | None, str | None]:
        commit, branch = self.request.commit, self.request.branch
        if commit is not None and not re.fullmatch(r"[0-9a-fA-F]{7,64}", commit):
            raise SourceError(f"{commit!r} is no commit: 7 to 64 hexadecimal digits are; correct the source")
        if branch is not None:
            asked = self.git.ask("check-ref-format", f"refs/heads/{branch}", cwd=self.mirrors.root)
            if branch.startswith("-") or asked.code:
                raise SourceError(f"{branch!r} can't be the name of a branch; correct the source")
        return commit.lower() if commit else None, branch

    def _fill(self, commit: str, branch: str | None) -> bool:
        """Make the workspace a repository of its own with the commit checked out; the lock is held shared."""
        git, here, mirror = self.git, self.workspace, str(self.mirror.path)
        if self.request.depth is None:
            options = ("--local", "--no-hardlinks", "--no-checkout", "--template=", "--quiet")
            done = git.run("clone", *options, "--", mirror, ".", cwd=here, transports="file")
            origin = ("remote", "set-url", "--", "origin", git.remote.url)
        else:
            shape = self.mirror.object_format()
            refspec = f"+{commit}:refs/remotes/origin/{branch}" if branch else commit
            fetch = ("fetch", "--quiet", "--no-tags", f"--depth={self.request.depth}", "--", mirror)
            done = git.ask("init", "--template=", f"--object-format={shape}", cwd=here).code == 0
            done = done and git.run(*fetch, refspec, cwd=here, transports="file")
            origin = ("remote", "add", "--", "origin", git.remote.url)
        done = done and git.ask(*origin, cwd=here).code == 0
        switch = ("checkout", "--force", "--detach", "--quiet", commit)
        return done and git.run(*switch, cwd=here, transports="file")

    def submodules(self) -> None:
        """Check submodules out, over the transports of remotes only."""
        depth = [] if self.request.depth is None else [f"--depth={self.request.depth}"]
        update = ("submodule", "update", "--init", "--recursive", *depth)

        def attempt() -> SourceError | SourceUnavailable | None:
            if self.git.run(*update, cwd=self.workspace, transports=REMOTE_TRANSPORTS):
                return None
            # The second try is the one whose words are kept: the first went to the step's output.
            asked = self.git.ask(*update, cwd=self.workspace, transports=REMOTE_TRANSPORTS)
            return classified(asked.err, self.git.remote) if asked.code else None

        self.git.retry(attempt)

    def described(self, commit: str, branch: str | None) -> SourceResult:
        """Read author and message of what is checked out; at most 64 KiB of message."""
        show = ("log", "-1", "--no-show-signature", "--format=%an <%ae>%x00%B")
        asked = self.git.ask(*show, cwd=self.workspace)
        author, _, message = asked.out[:65536].decode("utf-8", "replace").partition("\0")
        secrets = secrets_in_url(self.request.url)
        return SourceResult(
            commit=commit, branch=branch, author=author, message=message.strip(), secrets_in_url=secrets
        )


def _copy_folder(path: Path, workspace: Path, deadline: Deadline) -> None:
    if workspace.resolve().is_relative_to(path):
        raise SourceError(f"{path} holds this server's own workspaces and can't be copied into one")

    def copy(source: str, target: str) -> object:
        if deadline.is_passed:
            raise SourceUnavailable(f"copying {path} took longer than the checkout may; raise git_timeout_s")
        return shutil.copy2(source, target, follow_symlinks=False)

    def special(directory: str, names: list[str]) -> list[str]:
        found = (Path(directory) / name for name in names)
        return [one.name for one in found if not (one.is_symlink() or one.is_dir() or one.is_file())]

    try:
        shutil.copytree(
            path, workspace, symlinks=True, ignore=special, copy_function=copy, dirs_exist_ok=True
        )
    except PermissionError as error:
        raise SourceError(f"the agent may not read {error.filename}; change its mode or owner") from error
    except shutil.Error as error:
        raise SourceError(f"parts of {path} can't be copied: {error.args[0][:3]}") from error
    except OSError as error:
        raise SourceUnavailable(f"copying {path} failed: {error}; see to the disk") from error
