"""Which commit is meant: in a checkout, of a path, of an address. Real git, on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.cli import repository
from agent.errors import NotFound, SourceUnavailable, StateConflict

FILE = "build.yml"


def git(folder: Path, *words: str) -> str:
    options = ("-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always")
    done = subprocess.run(["git", *options, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, name: str = FILE, text: str = "project: x\nsteps: ['true']\n") -> str:
    (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", f"Write {name}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    git(folder, "init", "-q")
    return folder


@pytest.fixture
def remote(tmp_path: Path, checkout: Path) -> Path:
    folder = tmp_path / "web.git"
    git(tmp_path, "init", "-q", "--bare", str(folder))
    git(checkout, "remote", "add", "origin", "../web.git")
    return folder


def test_checkout_is_built_from_where_it_was_pushed(checkout: Path, remote: Path) -> None:
    head = commit(checkout)
    git(checkout, "push", "-q", "-u", "origin", "main")
    (checkout / "sub").mkdir()
    found = repository.of_checkout(checkout / "sub", file=FILE)
    assert (found.url, found.commit, found.branch, found.project) == (str(remote), head, "main", "web")
    assert found.definition == b"project: x\nsteps: ['true']\n"
    assert found.notes == ()


def test_commit_that_was_not_pushed_is_refused(checkout: Path, remote: Path) -> None:
    commit(checkout)
    git(checkout, "push", "-q", "origin", "main")
    commit(checkout, "more")
    with pytest.raises(StateConflict, match="push it first"):
        repository.of_checkout(checkout, file=FILE)


def test_checkout_without_a_remote_and_with_changes_says_so(checkout: Path) -> None:
    commit(checkout)
    (checkout / FILE).write_text("project: changed\n")
    found = repository.of_checkout(checkout, file=FILE)
    assert found.url == str(checkout)
    assert b"changed" not in (found.definition or b"")
    assert [it for it in found.notes if "1 changed file" in it]
    assert [it for it in found.notes if "source_roots" in it]


def test_definition_that_is_not_committed_is_told_from_one_that_is_not_there(checkout: Path) -> None:
    commit(checkout, "readme")
    with pytest.raises(NotFound, match=r"has no build\.yml$"):
        repository.of_checkout(checkout, file=FILE)
    (checkout / FILE).write_text("x")
    with pytest.raises(NotFound, match="add and commit it"):
        repository.of_checkout(checkout, file=FILE)


def test_folder_without_repository_or_commit_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no commit yet"):
        repository.of_checkout(checkout, file=FILE)
    with pytest.raises(NotFound, match="--repo"):
        repository.of_checkout(tmp_path, file=FILE)


def test_path_completes_branch_and_abbreviated_commit(checkout: Path) -> None:
    first = commit(checkout)
    git(checkout, "switch", "-q", "-c", "topic")
    second = commit(checkout, "more")
    path = str(checkout)

    def ask(branch: str | None, part: str | None) -> tuple[str, str | None]:
        found = repository.of_address(path, branch=branch, commit=part, file=FILE)
        return found.commit, found.branch

    assert ask(None, None) == (second, "topic")
    assert ask("main", None) == (first, "main")
    assert ask("topic", first[:7].upper()) == (first, "topic")
    for branch, part, words in (("nix", None, "no branch 'nix'"), (None, "dead1234", "no commit dead1234")):
        with pytest.raises(NotFound, match=words):
            ask(branch, part)


def test_address_completes_branch_and_commit_of_a_tip(checkout: Path, remote: Path) -> None:
    first = commit(checkout)
    git(checkout, "tag", "-a", "-m", "one", "v1")
    second = commit(checkout, "more")
    git(checkout, "push", "-q", "--tags", "origin", "main")
    url = f"file://{remote}"

    def ask(branch: str | None, part: str | None) -> tuple[str, str | None]:
        found = repository.of_address(url, branch=branch, commit=part, file=FILE)
        return found.commit, found.branch

    assert ask(None, None) == (second, "main")
    assert ask("main", None) == (second, "main")
    # An annotated tag is an object of its own: the commit it points at is meant.
    assert ask(None, first[:8])[0] == first
    with pytest.raises(NotFound, match="give all 40 digits"):
        ask(None, "0123456")
    with pytest.raises(NotFound, match="no branch 'nix'"):
        ask("nix", None)


def test_whole_commit_of_an_address_needs_no_network() -> None:
    found = repository.of_address("https://git.invalid/shop/web.git", branch=None, commit="a" * 40, file=FILE)
    assert (found.commit, found.branch, found.project) == ("a" * 40, None, "shop/web")


def test_branch_name_as_commit_is_refused_with_the_right_option() -> None:
    with pytest.raises(NotFound, match="--branch main"):
        repository.of_address("https://git.invalid/x", branch=None, commit="main", file=FILE)


def test_repository_out_of_reach_is_unavailable_and_keeps_its_password(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="fatal:"):
        repository.of_address(f"file://{tmp_path}/nothing.git", branch=None, commit=None, file=FILE)
    with pytest.raises(SourceUnavailable) as caught:
        repository.of_address("https://ada:geheim@127.0.0.1:1/x.git", branch="main", commit=None, file=FILE)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "without"),
    [
        ("https://ada:geheim@git.example.org/x.git", "https://git.example.org/x.git"),
        ("https://token@git.example.org/x.git", "https://git.example.org/x.git"),
        ("ssh://git:geheim@git.example.org:2222/x", "ssh://git@git.example.org:2222/x"),
        ("git@git.example.org:x/y.git", "git@git.example.org:x/y.git"),
        ("file:///srv/a@b:c/x", "file:///srv/a@b:c/x"),
    ],
)
def test_password_of_an_address_is_left_out(url: str, without: str) -> None:
    assert repository.without_password(url) == without


@pytest.mark.parametrize(
    ("url", "project"),
    [
        ("https://git.example.org/shop/web.git", "shop/web"),
        ("git@git.example.org:shop/web.git", "shop/web"),
        ("ssh://git@git.example.org:22/~ada/web/", "ada/web"),
        ("/srv/checkouts/my web", "my-web"),
        ("file:///srv/git/web.git", "web"),
        ("https://git.example.org/", "unnamed"),
    ],
)
def test_project_is_named_after_the_repository(url: str, project: str) -> None:
    assert repository.project_of(url) == project
