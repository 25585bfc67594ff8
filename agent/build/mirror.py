"""The mirrors of git repositories that a server keeps: filled, mended, locked and pruned.

A remote is spoken to only when the wanted commit is not in its mirror yet. Owns the directory of the mirrors;
knows nothing of workspaces but where git is told to trust one.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.build.git import POLL_S, Captured, Git, Remote, classified, pause
from agent.clock import Deadline
from agent.errors import SourceError, SourceUnavailable


@dataclass(frozen=True, slots=True)
class Mirror:
    """One repository's mirror, and git to work on it. Its lock is its user's to hold: `Mirrors.locked`."""

    root: Path
    git: Git

    @property
    def remote(self) -> Remote:
        """Whose mirror it is."""
        return self.git.remote

    @property
    def path(self) -> Path:
        """The mirror's directory, which may be missing yet."""
        return self.root / self.remote.name

    def ask(self, *args: str) -> Captured:
        """Run a git query in the mirror, out of the step's sight."""
        return self.git.ask("--git-dir=.", *args, cwd=self.path)

    def remote_head(self) -> tuple[str, str | None]:
        """Ask the remote for its default: the commit, and the branch unless its HEAD is detached."""
        answers: list[bytes] = []

        def attempt() -> SourceError | SourceUnavailable | None:
            argv = ("ls-remote", *self.git.upload_pack(), "--symref", "--", self.remote.url, "HEAD")
            asked = self.git.ask(*argv, cwd=self.root)
            answers.append(asked.out)
            return classified(asked.err, self.remote) if asked.code else None

        self.git.retry(attempt)
        text = answers[-1].decode("utf-8", "surrogateescape")
        branch = re.search(r"^ref: refs/heads/(.+)\tHEAD$", text, re.MULTILINE)
        commit = re.search(r"^([0-9a-f]{40,64})\tHEAD$", text, re.MULTILINE)
        if commit is None:
            raise SourceError(
                f"{self.remote.url} has no default branch (is it empty?); name a branch or commit"
            )
        return commit[1], branch[1] if branch else None

    def object_format(self) -> str:
        """Return what the mirror's ids are made with: sha1 or sha256."""
        return self.ask("rev-parse", "--show-object-format").out.decode().strip()

    def find_commit(self, name: str) -> str | None:
        """Return the full id of a commit in the mirror, given in part or whole, or by a full ref name."""
        if not self.path.exists():
            return None
        if len(name) in (40, 64) or name.startswith("refs/"):
            asked = self.ask("rev-parse", "--verify", "--quiet", "--end-of-options", name + "^{commit}")
            return asked.out.decode().strip() if asked.code == 0 else None
        # Not rev-parse of the short name: a branch may be called like it.
        found = self.ask("rev-parse", f"--disambiguate={name}").out.decode().split()
        commits = [one for one in found[:64] if self.ask("cat-file", "-t", one).out == b"commit\n"]
        if len(commits) > 1:
            raise SourceError(f"commit {name} is ambiguous: {', '.join(commits)}; name one in full")
        return commits[0] if commits else None

    def update(self) -> None:
        """Bring the mirror up to the remote, or make it; the caller holds its lock exclusively.

        A mirror that git can't read is made anew. A clone happens aside and is renamed when complete.
        """

        def attempt() -> SourceError | SourceUnavailable | None:
            if self._fetch() if self.path.exists() else self._clone():
                return None
            if problem := disk_problem(self.root):
                return problem
            asked = self.git.ask(
                "ls-remote", *self.git.upload_pack(), "--", self.remote.url, "HEAD", cwd=self.root
            )
            if asked.code:
                return classified(asked.err, self.remote)
            if self.path.exists() and not self.is_sound():
                remove(self.path)
            return SourceUnavailable(f"the transfer from {self.remote.url} broke off; see the step's output")

        self.git.retry(attempt)

    def _fetch(self) -> bool:
        refspecs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        options = ("--prune", "--force", "--no-recurse-submodules", *self.git.upload_pack())
        return self.git.run("--git-dir=.", "fetch", *options, "--", self.remote.url, *refspecs, cwd=self.path)

    def _clone(self) -> bool:
        aside = self.root / f".tmp-{self.remote.name}-{uuid.uuid4().hex}"
        try:
            options = ("--bare", "--no-local", "--template=", *self.git.upload_pack())
            if not self.git.run("clone", *options, "--", self.remote.url, str(aside), cwd=self.root):
                return False
            aside.rename(self.path)
            return True
        finally:
            remove(aside)

    def fetch_commit(self, commit: str) -> None:
        """Fetch a commit that no branch or tag holds, such as a pull request's; a ref keeps it.

        Raises: SourceError when the remote does not have it, or gives away no commits without a name.
        """

        def attempt() -> SourceError | SourceUnavailable | None:
            options = ("--no-tags", "--no-recurse-submodules", *self.git.upload_pack())
            asked = self.ask("fetch", *options, "--", self.remote.url, f"+{commit}:refs/build-agent/{commit}")
            return classified(asked.err, self.remote) if asked.code else None

        self.git.retry(attempt)

    def is_sound(self, commit: str | None = None) -> bool:
        """Tell whether the mirror is a repository with nothing missing and, if given, a readable commit.

        git fsck looks for what is missing, an archive reads every byte of the one commit that is wanted.
        """
        checks = [("fsck", "--connectivity-only", "--no-dangling", "--no-progress")]
        if commit is not None:
            checks.append(("archive", "--format=tar", "--output=/dev/null", commit))
        is_bare = self.ask("rev-parse", "--is-bare-repository").out == b"true\n"
        return is_bare and all(self.ask(*check).code == 0 for check in checks)


class Mirrors:
    """The bare mirrors of a server, one a URL, below one root; threads and processes may share it."""

    def __init__(
        self,
        root: Path,
        *,
        environ: Mapping[str, str] | None = None,
        local_roots: Sequence[Path] = (),
        limit_bytes: int = 0,
        first_wait_s: float = 1.0,
    ) -> None:
        """Make the root, mode 0700.

        Args:
            environ: where PATH, HOME, proxies and certificates for git are taken from; ours by default.
            local_roots: directories below which definitions may name local sources; none by default, for a
                definition must not be able to copy what only the agent may read.
            limit_bytes: after a clone the least recently used mirrors go until the rest fits; 0 for no limit.
            first_wait_s: before the second try of what the network failed; doubles from there.
        """
        self.root = root
        self.environ = dict(os.environ if environ is None else environ)
        self.first_wait_s = first_wait_s
        self.limit_bytes = limit_bytes
        self._local_roots = tuple(local_roots)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def prune(self, limit_bytes: int, *, keep: str = "") -> int:
        """Delete least recently used mirrors until the rest fits; return bytes freed. One in use stays."""
        mirrors = [path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        sizes = {path: _tree_bytes(path) for path in mirrors}
        total, freed = sum(sizes.values()), 0
        for mirror in sorted(mirrors, key=self._used_ns):
            if total <= limit_bytes:
                break
            if mirror.name == keep:
                continue
            with suppress(SourceUnavailable), self.locked(mirror.name, fcntl.LOCK_EX, Deadline.after(0)):
                remove(mirror)
                (self.root / f"{mirror.name}.lock").unlink(missing_ok=True)
                total -= sizes[mirror]
                freed += sizes[mirror]
        return freed

    def _used_ns(self, mirror: Path) -> int:
        with suppress(FileNotFoundError):
            return (self.root / f"{mirror.name}.lock").stat().st_mtime_ns
        return 0

    def allowed(self, path: Path) -> Path:
        """Return where a local source really lies.

        Symlinks of path and roots are followed now, not when the agent started: a root may be a link that is
        turned to another directory, or a disk that came later.
        Raises: SourceError when that is below no root, or no directory.
        """
        real = _resolved(path)
        roots = filter(None, map(_resolved, self._local_roots))
        if real is None or not any(real.is_relative_to(root) for root in roots):
            raise SourceError(f"this server takes no local sources from {path}; name a git URL")
        if not real.is_dir():
            raise SourceError(f"there is no directory {path} on this server; correct the source")
        return real

    @contextmanager
    def locked(self, name: str, kind: int, deadline: Deadline) -> Iterator[None]:
        """Hold a mirror's lock; shared for reading. Its file's mtime is when the mirror was last used."""
        path = self.root / f"{name}.lock"
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                while True:
                    try:
                        fcntl.flock(lock, kind | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if deadline.is_passed:
                            raise SourceUnavailable(
                                "another build kept the mirror of this source busy for too long"
                            ) from None
                        pause(POLL_S, deadline)
                # `prune` deletes lock files: only a lock on the file that is there now counts.
                with suppress(FileNotFoundError):
                    if os.fstat(lock).st_ino == path.stat().st_ino:
                        os.utime(lock)
                        yield
                        return
            finally:
                os.close(lock)

    def tidy(self, mirror: Mirror) -> None:
        """Clear what a former life left in and beside a mirror; the lock is held exclusively.

        A git that outlived its agent may still be at work there, holding no lock of ours: it is waited for.
        """
        while _is_git_at_work(mirror.path):
            mirror.git.check_deadline()
            pause(POLL_S, mirror.git.deadline)
        for aside in self.root.glob(f".tmp-{mirror.path.name}-*"):
            remove(aside)
        for directory, below, files in os.walk(mirror.path):
            if Path(directory) == mirror.path / "objects":
                below[:] = [name for name in below if name in ("pack", "info")]
            for name in files:
                if name.endswith(".lock") or name.startswith("tmp_"):
                    (Path(directory) / name).unlink(missing_ok=True)


def _resolved(path: Path) -> Path | None:
    """Return a path without symlinks, `None` when they lead in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # which of them depends on Python's version
        return None


def _is_git_at_work(mirror: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == mirror and (process / "comm").read_text().startswith("git"):
                return True
    return False


def disk_problem(path: Path) -> SourceUnavailable | None:
    """Return what to say of a disk that is full, `None` of one that is not."""
    state = os.statvfs(path)
    if state.f_bavail * state.f_frsize < 1 << 20 or (state.f_files and not state.f_favail):
        return SourceUnavailable(f"the disk of {path} is full; free space or inodes")
    return None


def remove(path: Path) -> None:
    """Delete a file or tree of ours; under another name first, so that no half is ever taken for whole."""
    if path.is_dir() and not path.is_symlink():
        doomed = (
            path if path.name.startswith(".tmp-") else path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex}")
        )
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _tree_bytes(root: Path) -> int:
    total = 0
    for directory, _, files in os.walk(root):
        for name in files:
            with suppress(FileNotFoundError):
                total += (Path(directory) / name).lstat().st_blocks * 512
    return total
