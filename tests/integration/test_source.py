"""Checkouts with real git: local repositories, a git daemon, a private https server, a peer that hangs."""

from __future__ import annotations

import base64
import fcntl
import functools
import http.server
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.build.git import secrets_in_url
from agent.build.mirror import Mirrors
from agent.build.source import SourceRequest, SourceResult, checkout
from agent.clock import Deadline, mono, sleep
from agent.errors import SourceError, SourceUnavailable

_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}


def _git(cwd: Path, *args: str) -> str:
    options = ("-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *options, *args], cwd=cwd, env=_ENV, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _commit(repository: Path, name: str, text: str) -> str:
    (repository / name).write_text(text)
    _git(repository, "add", "--all")
    _git(repository, "commit", "-q", "-m", f"Write {name}\n\nA body.")
    return _git(repository, "rev-parse", "HEAD")


class _Runner:
    """Runs commands as the step does and remembers what was run, with what environment, saying what."""

    def __init__(self) -> None:
        self.ran: list[Sequence[str]] = []
        self.envs: list[Mapping[str, str]] = []
        self.output = b""

    def run(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], deadline: Deadline) -> int:
        self.ran.append(argv)
        self.envs.append(env)
        with subprocess.Popen(
            argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            try:
                self.output += process.communicate(timeout=deadline.remaining_s)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return 137
        return process.returncode

    @property
    def verbs(self) -> list[str]:
        """The git verbs that were run."""
        return [next(word for word in argv[1:] if not word.startswith("-")) for argv in self.ran]


class _Site:
    """A served repository, mirrors and fresh workspaces."""

    def __init__(self, tmp_path: Path, url: str, repository: Path) -> None:
        self.url, self.repository, self.tmp_path = url, repository, tmp_path
        self.runner = _Runner()
        self.mirrors = self.new_mirrors()
        self._workspaces = 0

    def new_mirrors(self, **options: Any) -> Mirrors:
        return Mirrors(self.tmp_path / "mirrors", local_roots=[self.tmp_path], first_wait_s=0.02, **options)

    def workspace(self) -> Path:
        self._workspaces += 1
        path = self.tmp_path / f"workspace{self._workspaces}"
        path.mkdir()
        return path

    def checkout(
        self, workspace: Path | None = None, *, seconds: float = 60, **request: Any
    ) -> tuple[SourceResult, Path]:
        workspace = workspace or self.workspace()
        self.runner.ran.clear()
        if "path" not in request:
            request.setdefault("url", self.url)
        result = checkout(
            self.mirrors, SourceRequest(**request), workspace, self.runner, Deadline.after(seconds)
        )
        return result, workspace

    @property
    def mirror(self) -> Path:
        (path,) = (p for p in (self.tmp_path / "mirrors").iterdir() if p.is_dir())
        return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "served" / "project"
    path.mkdir(parents=True)
    _git(path, "init", "-q")
    _commit(path, "a.txt", "one")
    _commit(path, "a.txt", "two")
    return path


@pytest.fixture
def site(tmp_path: Path, repository: Path) -> _Site:
    """A site whose repository is reached by a file URL."""
    return _Site(tmp_path, repository.as_uri(), repository)


@pytest.fixture
def daemon(tmp_path: Path, repository: Path) -> Iterator[_Site]:
    """A site whose repository is served by `git daemon`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ("--reuseaddr", "--export-all", f"--base-path={tmp_path / 'served'}", "--listen=127.0.0.1")
    with subprocess.Popen(
        ["git", "-c", "safe.directory=*", "daemon", *options, f"--port={port}"],
        env=_ENV,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = Deadline.after(10)
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                assert not deadline.is_passed, "git daemon does not listen"
                sleep(0.01)
        yield _Site(tmp_path, f"git://127.0.0.1:{port}/project", repository)
        os.killpg(process.pid, signal.SIGTERM)


def test_default_branch_is_checked_out_with_author_and_message(daemon: _Site) -> None:
    result, workspace = daemon.checkout()
    assert result == SourceResult(
        commit=_git(daemon.repository, "rev-parse", "HEAD"),
        branch="main",
        message="Write a.txt\n\nA body.",
        author="Ada <ada@example.org>",
    )
    assert (workspace / "a.txt").read_text() == "two"
    assert _git(workspace, "remote", "get-url", "origin") == daemon.url


def test_commit_in_the_mirror_needs_no_remote(site: _Site) -> None:
    commit = _git(site.repository, "rev-parse", "HEAD~1")
    site.checkout(commit=commit)
    site.repository.rename(site.repository.with_name("gone"))
    site.repository.mkdir()
    result, workspace = site.checkout(commit=commit[:9].upper())
    assert result.commit == commit
    assert (workspace / "a.txt").read_text() == "one"
    assert site.runner.verbs == ["clone", "checkout"]


def test_branch_is_fetched_every_time(daemon: _Site) -> None:
    daemon.checkout(branch="main")
    newest = _commit(daemon.repository, "a.txt", "three")
    result, _ = daemon.checkout(branch="main")
    assert result.commit == newest
    assert daemon.runner.verbs[0] == "fetch"


def test_tag_will_do_for_a_branch(site: _Site) -> None:
    _git(site.repository, "tag", "-a", "-m", "first", "v1", "HEAD~1")
    result, _ = site.checkout(branch="v1")
    assert result.commit == _git(site.repository, "rev-parse", "HEAD~1")


def test_commit_outside_all_branches_is_fetched_by_its_id(daemon: _Site) -> None:
    daemon.checkout()
    _git(daemon.repository, "checkout", "-q", "--detach")
    lone = _commit(daemon.repository, "b.txt", "pull request")
    _git(daemon.repository, "update-ref", "refs/pull/7/head", lone)
    _git(daemon.repository, "checkout", "-q", "main")
    result, workspace = daemon.checkout(commit=lone)
    assert result.commit == lone
    assert (workspace / "b.txt").exists()


def test_detached_head_of_a_local_repository_is_cloned(site: _Site) -> None:
    _git(site.repository, "checkout", "-q", "--detach")
    lone = _commit(site.repository, "b.txt", "lone")
    (site.repository / "uncommitted").touch()
    result, workspace = site.checkout(path=site.repository)
    assert (result.commit, result.branch) == (lone, None)
    assert not (workspace / "uncommitted").exists()


def test_depth_cuts_the_history_of_the_workspace(daemon: _Site) -> None:
    _, workspace = daemon.checkout(depth=1, branch="main")
    assert _git(workspace, "rev-list", "--count", "HEAD") == "1"
    assert _git(workspace, "rev-parse", "origin/main") == _git(workspace, "rev-parse", "HEAD")
    assert _git(workspace, "remote", "get-url", "origin") == daemon.url


def test_branch_named_like_a_short_commit_does_not_shadow_it(site: _Site) -> None:
    wanted = _git(site.repository, "rev-parse", "HEAD~1")
    _git(site.repository, "branch", wanted[:8], "HEAD")
    result, _ = site.checkout(commit=wanted[:8])
    assert result.commit == wanted


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"commit": "0123456789"}, "no commit 0123456789"),
        ({"commit": "f" * 40}, "does not have|no commit"),
        ({"commit": "--upload-pack=x"}, "no commit"),
        ({"branch": "absent"}, "no branch or tag 'absent'"),
        ({"branch": "--upload-pack=touch pwned"}, "can't be the name"),
        ({"branch": "a..b"}, "can't be the name"),
    ],
)
def test_wrong_names_are_the_users_error(daemon: _Site, request_: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        daemon.checkout(**request_)


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/pwned",
        "ext::sh",
        "--upload-pack=touch",
        "http://example.org/x",
        "ssh://-oProxyCommand=x/y",
        "x",
        "https://a\nb/",
    ],
)
def test_urls_of_other_transports_are_refused(site: _Site, url: str) -> None:
    with pytest.raises(SourceError):
        site.checkout(url=url)
    assert site.runner.ran == []


def test_missing_repository_is_the_users_error(daemon: _Site) -> None:
    with pytest.raises(SourceError, match="not exported"):
        daemon.checkout(url=daemon.url + "-absent")
    assert daemon.runner.verbs == []


def test_empty_repository_is_the_users_error(site: _Site, tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q", "--bare", "empty.git")
    with pytest.raises(SourceError, match="no default branch"):
        site.checkout(url=(tmp_path / "empty.git").as_uri())


def test_refused_connection_is_retried_then_unavailable(site: _Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(SourceUnavailable, match="can't be reached"):
        site.checkout(url=f"git://127.0.0.1:{port}/x", commit="1234567")
    assert site.runner.verbs == ["clone"] * 6


def test_unknown_host_is_unavailable(site: _Site) -> None:
    with pytest.raises(SourceUnavailable, match="reached"):
        site.checkout(url="git://host.invalid/x")


@pytest.mark.parametrize("request_", [{}, {"commit": "1234567"}])
def test_remote_that_hangs_ends_at_the_deadline(site: _Site, request_: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = mono()
        with pytest.raises(SourceUnavailable, match="longer"):
            site.checkout(url=f"git://127.0.0.1:{silent.getsockname()[1]}/x", seconds=0.5, **request_)
    assert mono() - began < 5
    assert [p.name for p in (site.tmp_path / "mirrors").iterdir() if p.is_dir()] == []


def test_wait_for_another_builds_fetch_ends_at_the_deadline(site: _Site) -> None:
    site.checkout()
    with site.mirror.with_name(site.mirror.name + ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SourceUnavailable, match="busy"):
            site.checkout(commit=_git(site.repository, "rev-parse", "HEAD"), seconds=0.3)


def test_slots_share_one_mirror(daemon: _Site) -> None:
    results: list[str | None] = []
    threads = [
        threading.Thread(target=lambda path: results.append(daemon.checkout(path)[0].commit), args=(path,))
        for path in [daemon.workspace() for _ in range(6)]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [_git(daemon.repository, "rev-parse", "HEAD")] * 6
    assert daemon.mirror.is_dir()


def _break_head(mirror: Path) -> None:
    (mirror / "HEAD").write_bytes(b"\0" * 40)


def _break_objects(mirror: Path) -> None:
    for path in (mirror / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"\0" * path.stat().st_size)


def _empty_mirror(mirror: Path) -> None:
    shutil.rmtree(mirror)
    mirror.mkdir()


@pytest.mark.parametrize("damage", [_break_head, _break_objects, _empty_mirror])
@pytest.mark.parametrize("by", ["branch", "commit"])
def test_broken_mirror_is_cloned_anew(daemon: _Site, damage: Any, by: str) -> None:
    first, _ = daemon.checkout()
    damage(daemon.mirror)
    wanted = {"branch": "main"} if by == "branch" else {"commit": first.commit}
    result, workspace = daemon.checkout(**wanted)
    assert result.commit == first.commit
    assert (workspace / "a.txt").read_text() == "two"


def test_blob_lost_from_the_mirror_is_had_back(daemon: _Site) -> None:
    first, _ = daemon.checkout()
    blob = _git(daemon.repository, "rev-parse", "HEAD:a.txt")
    for pack in (daemon.mirror / "objects" / "pack").glob("*.pack"):
        data = pack.rename(daemon.tmp_path / "pack").read_bytes()
        pack.with_suffix(".idx").unlink()
        subprocess.run(["git", "unpack-objects", "-q"], cwd=daemon.mirror, env=_ENV, input=data, check=True)
    (daemon.mirror / "objects" / blob[:2] / blob[2:]).unlink()
    result, workspace = daemon.checkout(commit=first.commit)
    assert result.commit == first.commit
    assert (workspace / "a.txt").read_text() == "two"


def test_leftovers_of_a_killed_fetch_do_not_block(site: _Site) -> None:
    site.checkout()
    mirror = site.mirror
    leftovers = [mirror / "packed-refs.lock", mirror / "refs/heads/main.lock", mirror / "shallow.lock"]
    leftovers.append(mirror / "objects" / "pack" / "tmp_pack_x")
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    half = mirror.with_name(f".tmp-{mirror.name}-0")
    half.mkdir()
    newest = _commit(site.repository, "a.txt", "three")
    assert site.checkout()[0].commit == newest
    assert [path for path in (*leftovers, half) if path.exists()] == []


def test_git_of_a_dead_agent_is_waited_for_before_its_locks_go(site: _Site) -> None:
    site.checkout()
    lock = site.mirror / "packed-refs.lock"
    lock.touch()
    orphan = subprocess.Popen(
        ["git", "--git-dir=.", "cat-file", "--batch"], cwd=site.mirror, env=_ENV, stdin=subprocess.PIPE
    )
    with orphan:
        with pytest.raises(SourceUnavailable, match="longer"):
            site.checkout(branch="main", seconds=1)
        assert lock.exists()
        orphan.kill()
    assert site.checkout(branch="main")[0].commit
    assert not lock.exists()


def test_f01_checkout_killed_in_mid_clone_leaves_nothing_half(daemon: _Site) -> None:
    code = """
import os, sys
from pathlib import Path
from agent.build.mirror import Mirrors
from agent.build.source import SourceRequest, checkout
from agent.clock import Deadline
class Killed:
    def run(self, argv, *, cwd, env, deadline):
        Path(argv[-1]).mkdir()
        (Path(argv[-1]) / "HEAD").touch()
        os.kill(os.getpid(), 9)
request = SourceRequest(url=sys.argv[2])
checkout(Mirrors(Path(sys.argv[1])), request, Path(sys.argv[3]), Killed(), Deadline(None))
"""
    arguments = [str(daemon.tmp_path / "mirrors"), daemon.url, str(daemon.workspace())]
    assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == -9
    half = [p.name for p in (daemon.tmp_path / "mirrors").iterdir() if p.is_dir()]
    assert [name[:5] for name in half] == [".tmp-"]
    assert daemon.checkout()[0].branch == "main"
    assert not (daemon.tmp_path / "mirrors" / half[0]).exists()


def test_f30_build_cannot_reach_the_mirror_through_its_objects(site: _Site) -> None:
    _, workspace = site.checkout()
    objects = [path for path in (workspace / ".git" / "objects").rglob("*") if path.is_file()]
    assert objects
    assert {path.stat().st_nlink for path in objects} == {1}
    assert not (workspace / ".git" / "objects" / "info" / "alternates").exists()
    assert str(site.mirror) not in (workspace / ".git" / "config").read_text()


def test_f30_hooks_and_filters_are_not_run(site: _Site) -> None:
    pwned = site.tmp_path / "pwned"
    (site.repository / ".gitattributes").write_text("*.txt filter=evil\n*.bin filter=lfs\n")
    _commit(site.repository, "x.bin", "version https://git-lfs.github.com/spec/v1\n")
    hook = site.repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {pwned}\n")
    hook.chmod(0o755)
    home = site.tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[core]\nhooksPath={hook.parent}\n[filter "evil"]\nsmudge=touch {pwned}\n'
    )
    site.mirrors = site.new_mirrors(environ={"PATH": os.environ["PATH"], "HOME": str(home)})
    _, workspace = site.checkout()
    assert (workspace / "x.bin").read_text().startswith("version")
    assert not pwned.exists()


def test_f30_submodule_over_file_is_refused(site: _Site) -> None:
    secret = site.tmp_path / "secret"
    secret.mkdir()
    _git(secret, "init", "-q")
    _commit(secret, "token", "hidden")
    _git(site.repository, "submodule", "--quiet", "add", secret.as_uri(), "sub")
    _commit(site.repository, "b", "b")
    workspace = site.workspace()
    # Versions of git word it differently; that it is the source's fault, and no retry helps, is what counts.
    with pytest.raises(SourceError, match=r"(?i)not (allowed|supported|permitted)|does not have|refused"):
        site.checkout(workspace, submodules=True)
    assert list(workspace.rglob("token")) == []
    assert b"hidden" not in site.runner.output
    assert site.checkout()[1].joinpath("sub").is_dir(), "without submodules the source is fine"


def test_submodule_over_a_remote_transport_is_checked_out(daemon: _Site) -> None:
    library = daemon.tmp_path / "served" / "library"
    library.mkdir()
    _git(library, "init", "-q")
    _commit(library, "lib.txt", "lib")
    _git(daemon.repository, "submodule", "--quiet", "add", library.as_uri(), "lib")
    _git(daemon.repository, "config", "-f", ".gitmodules", "submodule.lib.url", "../library")
    _commit(daemon.repository, "b", "b")
    _, workspace = daemon.checkout(submodules=True)
    assert (workspace / "lib" / "lib.txt").read_text() == "lib"


def test_f30_names_with_newlines_and_dashes_are_checked_out(site: _Site) -> None:
    names = {"-rf", "--", "new\nline", "sp ace"}
    for name in names:
        _commit(site.repository, name, name)
    _, workspace = site.checkout()
    assert names <= {path.name for path in workspace.iterdir()}


def test_plain_folder_is_copied_with_symlinks_as_they_are(site: _Site) -> None:
    folder = site.tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "sub" / "run.sh").chmod(0o755)
    (folder / "out").symlink_to("/etc/passwd")
    os.mkfifo(folder / "fifo")
    result, workspace = site.checkout(path=folder)
    assert result == SourceResult()
    assert (workspace / "out").readlink() == Path("/etc/passwd")
    assert os.access(workspace / "sub" / "run.sh", os.X_OK)
    assert not (workspace / "fifo").exists()


def test_f31_local_path_outside_the_allowed_roots_is_refused(site: _Site) -> None:
    (site.tmp_path / "link").symlink_to("/etc")
    for request_ in ({"path": Path("/etc")}, {"path": site.tmp_path / "link"}, {"url": "file:///etc"}):
        with pytest.raises(SourceError, match="no local sources"):
            site.checkout(**request_)
    site.mirrors = Mirrors(site.tmp_path / "mirrors")
    with pytest.raises(SourceError, match="no local sources"):
        site.checkout(path=site.repository)


def test_f31_symlinks_of_roots_and_sources_are_followed_at_each_look(site: _Site) -> None:
    (site.tmp_path / "old").mkdir()
    (site.tmp_path / "new" / "folder").mkdir(parents=True)
    (site.tmp_path / "new" / "folder" / "a.txt").write_text("new")
    root, alias = site.tmp_path / "root", site.tmp_path / "alias"
    root.symlink_to("old")
    alias.symlink_to(site.tmp_path / "new" / "folder")
    site.mirrors = Mirrors(site.tmp_path / "mirrors", local_roots=[root])
    with pytest.raises(SourceError, match="no local sources"):
        site.checkout(path=alias)
    root.unlink()
    root.symlink_to("new")
    for path in (root / "folder", site.tmp_path / "new" / "folder", alias):
        assert (site.checkout(path=path)[1] / "a.txt").read_text() == "new"
    with pytest.raises(SourceError, match="no local sources"):
        site.checkout(path=site.tmp_path / "old")


def test_symlinks_that_lead_in_a_circle_are_the_users_error(site: _Site) -> None:
    circle = site.tmp_path / "circle"
    circle.symlink_to(circle)
    site.mirrors = Mirrors(site.tmp_path / "mirrors", local_roots=[circle, site.repository.parent])
    with pytest.raises(SourceError):
        site.checkout(path=circle)
    assert site.checkout(path=site.repository)[0].branch == "main", "the other roots hold"


def test_no_source_leaves_the_workspace_empty(site: _Site) -> None:
    result, workspace = site.checkout(url=None)
    assert result == SourceResult()
    assert list(workspace.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a repository to another user")
def test_local_repository_of_another_user_can_be_cloned(site: _Site) -> None:
    for path in (site.repository, *site.repository.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    assert site.checkout(path=site.repository)[0].branch == "main"


def test_least_recently_used_mirrors_are_pruned(site: _Site) -> None:
    others = []
    for name in ("x", "y"):
        shutil.copytree(site.repository, site.tmp_path / name)
        others.append((site.tmp_path / name).as_uri())
    site.checkout(url=others[0])
    oldest = site.mirror
    site.checkout(url=others[1])
    os.utime(oldest.with_name(oldest.name + ".lock"), (0, 0))
    size = sum(p.lstat().st_blocks * 512 for p in oldest.rglob("*") if p.is_file())
    freed = site.mirrors.prune(size)
    assert freed > 0
    assert not oldest.exists()
    assert "y" in site.mirror.name
    assert site.checkout(url=others[0])[0].branch == "main", "a pruned mirror comes back"


def test_mirror_in_use_is_not_pruned(site: _Site) -> None:
    site.checkout()
    with site.mirror.with_name(site.mirror.name + ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert site.mirrors.prune(0) == 0
    assert site.mirror.exists()


class _PrivateHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files to one user only."""

    wanted = "Basic " + base64.b64encode(b"ci:p@ss/word").decode()

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != self.wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def private(tmp_path: Path, repository: Path) -> Iterator[_Site]:
    """A site on an https server that asks for a password (git's dumb protocol: static files)."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    request = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    subprocess.run(
        ["openssl", *request, *subject, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    _git(tmp_path, "clone", "-q", "--bare", str(repository), "served/private.git")
    _git(tmp_path / "served" / "private.git", "update-server-info")
    handler = functools.partial(_PrivateHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        site = _Site(
            tmp_path, f"https://ci:p%40ss%2Fword@localhost:{server.server_port}/private.git", repository
        )
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_SSL_CAINFO": str(certificate)}
        site.mirrors = site.new_mirrors(environ=environ)
        yield site
        server.shutdown()
        thread.join(10)


def test_credentials_reach_the_remote_and_nothing_else(private: _Site) -> None:
    result, workspace = private.checkout()
    assert result.commit == _git(private.repository, "rev-parse", "HEAD")
    assert set(result.secrets_in_url) == {"p%40ss%2Fword", "p@ss/word"}
    texts = [" ".join(argv) for argv in private.runner.ran]
    texts += [private.runner.output.decode(), repr(result), private.mirror.name]
    texts += [(workspace / ".git" / "config").read_text(), (private.mirror / "config").read_text()]
    assert [text for text in texts if "word" in text] == []
    assert "localhost" in _git(workspace, "remote", "get-url", "origin")


def test_refused_credentials_are_the_users_error_and_masked(private: _Site) -> None:
    private.checkout()
    wrong = private.url.replace("p%40ss%2Fword", "letmein")
    commit = _git(private.repository, "rev-parse", "HEAD")
    with pytest.raises(SourceError, match="refused this server") as caught:
        private.checkout(url=wrong, commit=commit)
    assert "letmein" not in str(caught.value) + private.runner.output.decode()


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        (None, []),
        ("git@host:x", []),
        ("https://host/x", []),
        ("https://token123@host/x", ["token123"]),
        ("https://token123:x-oauth-basic@host/x", ["token123", "x-oauth-basic"]),
        ("https://u:p%3A@host/x", ["p%3A", "p:"]),
        ("ssh://git@host/x", []),
    ],
)
def test_secrets_in_url_are_found(url: str | None, secrets: list[str]) -> None:
    assert secrets_in_url(url) == secrets
