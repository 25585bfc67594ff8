"""The directories a build works in: made, walked, removed.

Owns the layout below the workspace root, removal that can't be led astray or blocked, and the one way other
modules read a tree that a hostile build has filled: component by component, never through a symlink. Knows
nothing of sources, steps or mounts beyond seeing that one is there.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import itertools
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent import log
from agent.errors import DefinitionError, WorkspaceError

_Matcher = Callable[[str], re.Match[str] | None]

_log = log.get(__name__)
_TRASH = ".trash"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# One descriptor stays open for each level of a walk; the usual soft limit is 1,024 for the whole agent.
_DEPTH_LIMIT = 200
_SLUG_CHARS = 8  # short: a step may put a Unix socket into its tmp, and those paths end at 107 bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """The directories of one attempt; `source` is where the checkout goes and steps begin."""

    path: Path
    home: Path
    tmp: Path
    source: Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing found by `walk_tree`; `directory_fd` is open only until the next step of the walk."""

    name: str
    directory_fd: int
    stat: os.stat_result

    @property
    def own_name(self) -> str:
        """The last component of the name, to be used with `directory_fd`."""
        return self.name.rpartition("/")[2]


class Workspaces:
    """All workspaces of a server, below one root. Threads may share it; two slots never share an attempt."""

    def __init__(self, root: Path) -> None:
        """Make the root where it is missing. Raises: WorkspaceError."""
        self._root = root
        try:
            (root / _TRASH).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(f"cannot make the workspace directory {root}: {error.strerror}") from error

    def create(self, build_id: str, attempt: int) -> Workspace:
        """Make the empty directories of an attempt, mode 0700.

        Args:
            build_id: any text; the directory name is made of its safe characters and its digest.
        Raises: WorkspaceError when the disk refuses, or what a former life left there can't be moved away.
        """
        path = self._root / directory_name(build_id, attempt)
        if path.is_symlink() or path.exists():
            self._discard(path)
        made = Workspace(path=path, home=path / "home", tmp=path / "tmp", source=path / "source")
        try:
            for directory in (path, made.home, made.tmp, made.source):
                directory.mkdir(mode=0o700)
        except OSError as error:
            raise WorkspaceError(
                f"cannot make the workspace {path}: {error.strerror}; "
                "see that the disk has space and inodes and that the agent may write there"
            ) from error
        return made

    def remove(self, workspace: Workspace) -> None:
        """Move the workspace out of the way, then delete it; one that is gone already is a success.

        Raises: WorkspaceError when something is mounted inside (nothing is touched then), or when parts could
        not be deleted: those lie in the trash, block nobody, and the next `sweep` tries them again.
        """
        if workspace.path.is_symlink() or workspace.path.exists():
            self._discard(workspace.path)

    def sweep(self, keep: AbstractSet[tuple[str, int]]) -> int:
        """Remove every workspace but those of the attempts (build id, number) in `keep`, and the trash.

        Returns: workspaces removed. One that resists does not save the others from removal.
        Raises: WorkspaceError at the end, with what each one said.
        """
        kept = {directory_name(build_id, attempt) for build_id, attempt in keep} | {_TRASH}
        removed, faults = 0, []
        for path in sorted(self._root.iterdir()):
            if path.name in kept:
                continue
            try:
                self._discard(path)
                removed += 1
            except WorkspaceError as error:
                faults.append(str(error))
        faults += self._empty_trash([path.name for path in (self._root / _TRASH).iterdir()])
        if faults:
            raise WorkspaceError("; ".join(dict.fromkeys(faults)))
        return removed

    def _discard(self, path: Path) -> None:
        for mount in mounts_below(path):
            raise WorkspaceError(f"{mount} is still mounted inside the workspace {path}; unmount it")
        name = f"{path.name}.{uuid.uuid4().hex}"
        try:
            path.rename(self._root / _TRASH / name)
        except OSError as error:
            raise WorkspaceError(f"cannot move the workspace {path} away: {error.strerror}") from error
        if faults := self._empty_trash([name]):
            raise WorkspaceError("; ".join(faults))

    def _empty_trash(self, names: Sequence[str]) -> list[str]:
        """Delete trees that lie in the trash; return what could not be deleted, the first of each tree."""
        trash = os.open(self._root / _TRASH, _DIRECTORY)
        try:
            faults = []
            for name in names:
                for mount in mounts_below(self._root / _TRASH / name):
                    faults.append(f"{mount} is still mounted in the trash; unmount it")
                    break
                else:
                    if fault := _delete_tree(trash, name):
                        faults.append(f"cannot delete {self._root / _TRASH / name}: {fault}")
            return faults
        finally:
            os.close(trash)


def directory_name(build_id: str, attempt: int) -> str:
    """Return a directory name for an attempt: readable, at most 42 ASCII characters, never two ids to one."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", build_id)[:_SLUG_CHARS].strip("-") or "build"
    digest = hashlib.sha256(build_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{slug}-{digest}-{attempt}"


def mounts_below(path: Path) -> list[Path]:
    """Return the mount points at or below `path`, as this process sees them."""
    # Not resolved itself: a workspace that was replaced by a symlink is a symlink, wherever it points.
    real = path.parent.resolve() / path.name
    found = []
    # As bytes: this is looked at twice a build, and a machine may have hundreds of mounts.
    wanted = os.fsencode(real)
    below = wanted.rstrip(b"/") + b"/"
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # Field 5 is the mount point; the kernel writes space, tab, newline and backslash as octal.
        mount = line.split(b" ", 5)[4]
        if b"\\" in mount:
            mount = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), mount)
        if mount == wanted or mount.startswith(below):
            found.append(Path(os.fsdecode(mount)))
    return found


def _delete_tree(trash: int, first: str) -> str | None:
    """Delete one tree in the trash directory; return the first fault, None when all is gone.

    Every subdirectory is renamed into the trash before its turn comes. So neither the depth of a tree costs
    recursion or descriptors (shutil.rmtree ends at 1,000 levels), nor is any name resolved through more than
    one component: a directory swapped for a symlink is moved and unlinked as the symlink it is.
    """
    fault: str | None = None
    numbers = itertools.count()
    waiting = [first]
    while waiting:
        name = waiting.pop()
        try:
            try:
                directory = _open_writable(trash, name)
            except NotADirectoryError:
                os.unlink(name, dir_fd=trash)
                continue
            try:
                for _ in range(3):  # some file systems pass over entries while others are being deleted
                    waiting += _empty_directory(trash, directory, f"{first}.{next(numbers)}")
                    with os.scandir(directory) as left:
                        if next(left, None) is None:
                            break
            finally:
                os.close(directory)
            os.rmdir(name, dir_fd=trash)
        except OSError as error:
            fault = fault or f"{error.filename or name}: {error.strerror}"
    return fault


def _empty_directory(trash: int, directory: int, prefix: str) -> list[str]:
    moved = []
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=directory)
                continue
            # Without write permission on a directory its `..` can't change, hence no rename.
            with _no_permission_problem():
                os.close(_open_writable(directory, entry.name))
            name = f"{prefix}.{number}"
            os.rename(entry.name, name, src_dir_fd=directory, dst_dir_fd=trash)
            moved.append(name)
    return moved


@contextmanager
def _no_permission_problem() -> Iterator[None]:
    """Pass over what the rename that follows will report in better words."""
    try:
        yield
    except OSError as error:
        _log.debug("workspace.chmod_failed", str(error))


def _open_writable(parent: int, name: str) -> int:
    """Open a directory after giving its owner all rights; works with mode 000, never through a symlink."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        if mode & 0o700 != 0o700:
            # fchmod refuses an O_PATH descriptor; its /proc name leads to the very same inode.
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101
        return os.open(".", _DIRECTORY, dir_fd=handle)
    finally:
        os.close(handle)


def relative_parts(name: str, what: str) -> tuple[str, ...]:
    """Split a path from a definition into components, which stay below where they start.

    Args:
        what: names the thing in the error, such as "cache path".
    Raises: DefinitionError when the path is empty, absolute, holds NUL or climbs with `..`.
    """
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise DefinitionError(
            f"{what} {name!r} must be relative, below the source directory, and without '..'; correct it"
        )
    return parts


@contextmanager
def open_beneath(root: Path, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """Open the directory `parts` below `root` and yield its descriptor; no component may be a symlink.

    `root` itself is the agent's own and may be reached through symlinks. With `create` missing directories
    are made (mode 0755). Raises: OSError; ENOTDIR or ELOOP where a component is a symlink.
    """
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if create:
                try:
                    os.mkdir(part, 0o755, dir_fd=directory)
                except FileExistsError:
                    pass
            deeper = os.open(part, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = deeper
        yield directory
    finally:
        os.close(directory)


def walk_tree(root: Path, parts: Sequence[str] = ()) -> Iterator[Entry]:
    """Yield everything below `parts` below `root`, directories before what they hold, sorted by name.

    Names are relative to `root`. Symlinks are reported, never entered; where `parts` itself leads through
    one, or is missing, nothing is yielded; where it is no directory, it alone is yielded.
    Raises: DefinitionError when the tree is deeper than 200 levels; OSError.
    """
    with ExitStack() as stack:
        try:
            parent = stack.enter_context(open_beneath(root, parts[:-1]))
            found = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False) if parts else None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return
            raise
        if found is None:
            yield from _walk(parent, "", 0)
        else:
            entry = Entry("/".join(parts), parent, found)
            yield entry
            yield from _descend(entry, len(parts))


def _walk(directory: int, prefix: str, depth: int) -> Iterator[Entry]:
    if depth > _DEPTH_LIMIT:
        raise DefinitionError(f"{prefix!r} lies more than {_DEPTH_LIMIT} directories deep; leave it out")
    for name in sorted(os.listdir(directory)):
        entry = Entry(prefix + name, directory, os.stat(name, dir_fd=directory, follow_symlinks=False))
        yield entry
        yield from _descend(entry, depth + 1)


def _descend(entry: Entry, depth: int) -> Iterator[Entry]:
    if stat.S_ISDIR(entry.stat.st_mode):
        below = os.open(entry.own_name, _DIRECTORY, dir_fd=entry.directory_fd)
        try:
            yield from _walk(below, entry.name + "/", depth)
        finally:
            os.close(below)


def open_regular(entry: Entry) -> int:
    """Open a regular file for reading; one swapped for a symlink, FIFO or device meanwhile is refused.

    O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever. Raises: OSError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(entry.own_name, flags, dir_fd=entry.directory_fd)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", entry.name)
    return descriptor


def find_files(root: Path, patterns: Sequence[str], what: str) -> Iterator[Entry]:
    """Yield the regular files and symlinks below `root` that match any pattern, sorted, each once.

    `*` and `?` stay within a component, `**` spans any number, `[abc]` is a set; a pattern that names a
    directory takes all below it. Raises: DefinitionError for a pattern that leaves the root; OSError.
    """
    split = [relative_parts(pattern, what) for pattern in patterns]
    matchers = [[_component_matcher(part) for part in parts] for parts in split]
    # Only the directories that a pattern can reach are read: the literal beginnings, without those that lie
    # below another one.
    literal = {tuple(itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), p)) for p in split}
    starts = [s for s in sorted(literal) if not any(s[:n] in literal for n in range(len(s)))]
    for start in starts:
        for entry in walk_tree(root, start):
            mode = entry.stat.st_mode
            if (stat.S_ISREG(mode) or stat.S_ISLNK(mode)) and any(_matches(m, entry.name) for m in matchers):
                yield entry


def _component_matcher(part: str) -> _Matcher | None:
    """Return what tells whether a component matches; None stands for `**`."""
    if part == "**":
        return None
    return re.compile(fnmatch.translate(part)).match


def _matches(matchers: Sequence[_Matcher | None], name: str) -> bool:
    """Run a pattern over the components of a name as a set of states.

    One regular expression for the whole pattern would backtrack: `**/**/**/x` from a hostile definition could
    hold the interpreter lock, and with it the heartbeat, for minutes. States cost components by components.
    """
    states = _with_skips(matchers, {0})
    for component in name.split("/"):
        if len(matchers) in states:
            return True  # the pattern names a directory above
        states = _with_skips(matchers, set(_next_states(matchers, states, component)))
    return len(matchers) in states


def _next_states(matchers: Sequence[_Matcher | None], states: set[int], component: str) -> Iterator[int]:
    for state in states:
        matcher = matchers[state]
        if matcher is None:
            yield state
        elif matcher(component):
            yield state + 1


def _with_skips(matchers: Sequence[_Matcher | None], states: set[int]) -> set[int]:
    for state in sorted(states):
        position = state
        while position < len(matchers) and matchers[position] is None:
            position += 1
            states.add(position)
    return states
