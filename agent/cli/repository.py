"""Finds out which commit of which repository is meant: a checkout here, a path, or an address that git knows.

Asks git, with what little can be asked without fetching: `rev-parse` where the repository is at hand, `ls-remote`
where it is not. Changes nothing anywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from agent.errors import NotFound, SourceUnavailable, StateConflict

_LOCAL = "servers fetch from {}: only those on this machine can, if their setting source_roots allows it"
_GIT_TIMEOUT_S = 60.0
_WHOLE_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_USER_IN_URL = re.compile(r"://[^/@\s]*@")
_PART_OF_COMMIT = re.compile(r"[0-9a-fA-F]{4,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What is to be built. `definition` is the repository's own file at that commit, where it is at hand.

    `notes` tell the caller what it may not expect.
    """

    url: str
    commit: str
    branch: str | None
    project: str
    definition: bytes | None = None
    notes: tuple[str, ...] = ()


def of_checkout(folder: Path, *, file: str) -> Found:
    """Return the commit that is checked out in `folder`, to be fetched from where it was pushed to.

    Raises: NotFound when there is no repository, no commit or no `file` in it; StateConflict when the commit was
        not pushed.
    """
    top = _git(["rev-parse", "--show-toplevel"], folder)
    if top is None:
        raise NotFound(
            f"{folder} is in no git checkout: name a definition (build-agent submit FILE) or a repository (--repo)"
        )
    root = Path(top)
    commit = _git(["rev-parse", "--verify", "--quiet", "HEAD^{commit}"], root)
    if commit is None:
        raise NotFound(f"{root} has no commit yet: commit something first")
    branch = _git(["symbolic-ref", "--quiet", "--short", "HEAD"], root)
    definition = _file(root, commit, file)
    if definition is None:
        is_there = " (it is in the folder: add and commit it)" if (root / file).exists() else ""
        raise NotFound(f"commit {commit[:12]} of {root} has no {file}{is_there}")
    notes = []
    if changed := _git(["status", "--porcelain"], root):
        count = len(changed.splitlines())
        notes.append(
            f"{count} changed {'file is' if count == 1 else 'files are'} not in {commit[:12]}, which is built"
        )
    remote = _remote(root, branch)
    if remote is None:
        url = str(root)
        notes.append(f"the checkout has no remote; {_LOCAL.format(root)}")
    else:
        name, url = remote
        if not _git(["for-each-ref", "--contains", commit, "--count=1", f"refs/remotes/{name}/"], root):
            raise StateConflict(
                f"commit {commit[:12]} is not on {name} ({url}), where servers fetch it: push it first, or have "
                f"servers on this machine fetch it from here: --repo {root}"
            )
    return Found(
        url=url,
        commit=commit,
        branch=branch,
        project=project_of(url),
        definition=definition,
        notes=tuple(notes),
    )


def of_address(address: str, *, branch: str | None, commit: str | None, file: str) -> Found:
    """Return the commit that `branch` or `commit` names in a repository; without both, its default branch's.

    Raises: NotFound when there is no such thing; StateConflict when an abbreviated commit fits several;
        SourceUnavailable when git can't reach the repository.
    """
    if commit is not None and not _PART_OF_COMMIT.fullmatch(commit):
        raise NotFound(
            f"--commit {commit}: expected 4 to 64 hexadecimal digits; for a branch: --branch {commit}"
        )
    path = Path(address)
    if path.is_dir():
        return _of_path(path.resolve(), branch=branch, commit=commit, file=file)
    url = without_password(address)
    found = _of_remote(address, branch=branch, commit=commit.lower() if commit else None)
    if url != address:
        note = "the password in the address is left out: servers use their own credentials"
        return replace(found, url=url, notes=(note,))
    return found


def project_of(url: str) -> str:
    """Return a project's name made of a repository's address: its path, or the last part of a local one."""
    path = url if url.startswith("/") else (urlsplit(url).path if "://" in url else url.partition(":")[2])
    is_local = url.startswith(("/", "file:"))
    name = path.rstrip("/").removesuffix(".git").rstrip("/")
    name = name.rpartition("/")[2] if is_local else name.lstrip("/~")
    parts = (re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip(".") for part in name.split("/"))
    return "/".join(part for part in parts if part)[:200] or "unnamed"


def without_password(url: str) -> str:
    """Return an address without what definitions must not hold: they are stored and shown."""
    if "://" not in url or url.startswith("file:"):
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url
    # With https the user's name alone is often the token.
    kept = "" if parts.scheme.startswith("http") else user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{kept}@{host}" if kept else host))


def _of_path(root: Path, *, branch: str | None, commit: str | None, file: str) -> Found:
    if _git(["rev-parse", "--git-dir"], root) is None:
        raise NotFound(f"--repo {root}: the folder is no git repository")
    if branch is None and commit is None:
        branch = _git(["symbolic-ref", "--quiet", "--short", "HEAD"], root)
    wanted = commit or (f"refs/heads/{branch}" if branch else "HEAD")
    found = _git(["rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}"], root)
    if found is None:
        what = f"commit {commit}" if commit else f"branch {branch!r}" if branch else "commit"
        raise NotFound(f"--repo {root}: no {what}, or several that begin so")
    return Found(
        url=str(root),
        commit=found,
        branch=branch,
        project=project_of(str(root)),
        definition=_file(root, found, file),
        notes=(_LOCAL.format(root),),
    )


def _of_remote(url: str, *, branch: str | None, commit: str | None) -> Found:
    if commit and branch is None and _WHOLE_COMMIT.fullmatch(commit):
        return Found(url=url, commit=commit, branch=None, project=project_of(url))
    refs, default = _list_remote(url)
    if branch is None and commit is None:
        branch = default
    tip = refs.get(f"refs/heads/{branch}") if branch else refs.get("HEAD")
    if tip is None:
        what = f"branch {branch!r}" if branch else "default branch"
        raise NotFound(f"{url} has no {what}")
    found = tip if commit is None else _whole(commit, refs, url)
    return Found(url=url, commit=found, branch=branch, project=project_of(url))


def _whole(commit: str, refs: dict[str, str], url: str) -> str:
    """Return the whole of an abbreviated commit, of which only tips of branches and tags can be asked for."""
    if _WHOLE_COMMIT.fullmatch(commit):
        return commit
    fits = sorted({it for it in refs.values() if it.startswith(commit)})
    if not fits:
        raise NotFound(
            f"no branch or tag of {url} points at a commit that begins with {commit}: give all 40 digits, or a "
            "clone on this machine as --repo"
        )
    if len(fits) > 1:
        raise StateConflict(f"several commits of {url} begin with {commit}: {', '.join(fits[:5])}")
    return fits[0]


def _list_remote(url: str) -> tuple[dict[str, str], str | None]:
    """Return what each name of a remote points at, tags at their commits, and its default branch."""
    answer = _run(["ls-remote", "--symref", "--", url], Path.cwd())
    if answer.returncode != 0:
        raise SourceUnavailable(f"git can't reach {without_password(url)}: {_complaint(answer)}")
    refs: dict[str, str] = {}
    default = None
    for line in answer.stdout.splitlines():
        target, _, name = line.partition("\t")
        if target.startswith("ref: refs/heads/") and name == "HEAD":
            default = target.removeprefix("ref: refs/heads/")
        elif name:
            # `v1^{}` is what the annotated tag `v1` points at.
            refs[name.removesuffix("^{}")] = target
    return refs, default


def _complaint(answer: subprocess.CompletedProcess[str]) -> str:
    """Return the line in which git says what is wrong; further ones are advice, or what it tried before."""
    said = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
    # The password of an address is in git's own words, too.
    line = next((it for it in said if it.startswith(("fatal:", "ERROR:", "remote:"))), said[-1])
    return _USER_IN_URL.sub("://", line)


def _remote(root: Path, branch: str | None) -> tuple[str, str] | None:
    """Return the remote that a checkout is pushed to, as (name, address)."""
    names = (_git(["remote"], root) or "").split()
    if not names:
        return None
    tracked = _git(["config", f"branch.{branch}.remote"], root) if branch else None
    name = next((it for it in (tracked, "origin") if it in names), names[0])
    url = _git(["remote", "get-url", name], root) or ""
    if "://" not in url and (url.startswith(".") or (root / url).is_dir()):
        url = str((root / url).resolve())
    return name, without_password(url)


def _file(root: Path, commit: str, file: str) -> bytes | None:
    """Return a file of a commit; `None` when it is not there."""
    done = subprocess.run(
        ["git", "cat-file", "blob", f"{commit}:{file}"],
        cwd=root,
        env=_environment(),
        capture_output=True,
        check=False,
        timeout=_GIT_TIMEOUT_S,
    )
    return done.stdout if done.returncode == 0 else None


def _git(words: Sequence[str], folder: Path) -> str | None:
    """Return what git answers; `None` when it says no."""
    done = _run(words, folder)
    return done.stdout.strip() if done.returncode == 0 else None


def _run(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", *words],
            cwd=folder,
            env=_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_GIT_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise NotFound("git is not on the PATH: install it, or submit a definition instead") from error
    except subprocess.TimeoutExpired as error:
        raise SourceUnavailable(
            f"git has not answered for {_GIT_TIMEOUT_S:g} s: git {' '.join(words)}"
        ) from error


def _environment() -> dict[str, str]:
    environment = {**os.environ, "LC_ALL": "C"}
    if not sys.stdin.isatty():
        # Nobody is there to be asked for a password.
        environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": _batch_ssh()}
    return environment


def _batch_ssh() -> str:
    return f"{os.environ.get('GIT_SSH_COMMAND', 'ssh')} -o BatchMode=yes"
