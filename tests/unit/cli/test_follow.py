"""In which order a build is told, and that nothing of it is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from agent.cli.follow import Choice, Follower
from agent.cli.screen import Screen
from agent.cli.viewer import Silence
from agent.errors import NotFound
from agent.model.build import Attempt, Build, OutputChunk, Step
from agent.model.outcome import Outcome
from agent.store import builds
from agent.store.engine import Store
from tests.unit.cli.history import ID, History


class Notebook(Silence):
    """Writes down what it is told; `acts` are done one after another, each time everything so far was told."""

    def __init__(self, acts: Sequence[Callable[[], object]] = ()) -> None:
        self.told: list[str] = []
        self.acts = list(acts)

    def waiting(self, build: Build) -> None:
        self._act()

    def running(self, build: Build, steps: Sequence[Step]) -> None:
        self._act()

    def _act(self) -> None:
        if self.acts:
            self.acts.pop(0)()

    def attempt_begun(self, build: Build, attempt: Attempt) -> None:
        self.told.append(f"attempt {attempt.number}")

    def step_begun(self, step: Step) -> None:
        self.told.append(f"begin {step.step}")

    def output(self, step: Step, chunk: OutputChunk) -> None:
        self.told.append(f"{step.step}: {chunk.data.decode()}")

    def step_ended(self, step: Step) -> None:
        self.told.append(f"end {step.step} {step.outcome}")

    def attempt_ended(self, build: Build, attempt: Attempt) -> None:
        self.told.append(f"attempt {attempt.number} {attempt.outcome} {build.state}")

    def build_ended(self, build: Build) -> None:
        self.told.append(f"build {build.outcome}")


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    store = Store(sqlite_url)
    yield store
    store.dispose()


@pytest.fixture
def history(store: Store) -> History:
    return History(store)


def follower(history: History, notebook: Notebook, **more: object) -> Follower:
    return Follower(history.store, notebook, Screen(is_live=False), **more)  # type: ignore[arg-type]


def test_steps_that_were_quicker_than_the_reader_come_one_after_the_other(history: History) -> None:
    ref = history.claim()
    for step in (0, 1, 2):
        history.begin(ref, step)
        history.print(ref, step, b"a", b"b")
        history.end(ref, step)
    history.close(ref)
    notebook = Notebook()
    assert follower(history, notebook).follow(ID, 1) is Outcome.PASSED
    one = [f"begin {it} {it}: a {it}: b end {it} passed" for it in range(3)]
    assert " ".join(notebook.told) == f"attempt 1 {' '.join(one)} attempt 1 passed ended build passed"


def test_step_ends_only_after_its_last_byte(history: History) -> None:
    """The end is on record with the last chunks; both come between two looks."""
    ref = history.claim()

    def end_all() -> None:
        history.print(ref, 1, b"last")
        history.end(ref, 1)
        history.close(ref)

    history.begin(ref, 1)
    history.print(ref, 1, b"first")
    notebook = Notebook([end_all])
    follower(history, notebook).follow(ID, 1)
    assert notebook.told[1:5] == ["begin 1", "1: first", "1: last", "end 1 passed"]


def test_output_of_an_unknown_step_waits_for_its_beginning(history: History) -> None:
    ref = history.claim()
    history.print(ref, 4, b"early")
    notebook = Notebook([lambda: history.begin(ref, 4), lambda: None, lambda: history.close(ref)])
    follower(history, notebook).follow(ID, 1)
    assert notebook.told[:4] == ["attempt 1", "begin 4", "4: early", "end 4 passed"]


def test_output_whose_step_was_never_recorded_is_told_at_the_end(history: History) -> None:
    ref = history.claim()
    history.print(ref, 4, b"orphan")
    history.close(ref)
    notebook = Notebook()
    follower(history, notebook).follow(ID, 1)
    assert "4: orphan" in notebook.told


def test_next_attempt_is_followed_after_the_one_that_was_lost(history: History) -> None:
    first = history.claim()
    history.begin(first, 1)
    history.print(first, 1, b"one")

    def again() -> None:
        second = history.claim()
        history.begin(second, 1)
        history.print(second, 1, b"two")
        history.close(second)

    notebook = Notebook([lambda: history.close(first, Outcome.LOST), again])
    assert follower(history, notebook).follow(ID, 1) is Outcome.PASSED
    assert notebook.told == [
        "attempt 1",
        "begin 1",
        "1: one",
        "end 1 lost",
        "attempt 1 lost queued",
        "attempt 2",
        "begin 1",
        "1: two",
        "end 1 passed",
        "attempt 2 passed ended",
        "build passed",
    ]


def test_one_attempt_is_followed_to_its_own_end(history: History) -> None:
    ref = history.claim()
    history.close(ref, Outcome.LOST)
    notebook = Notebook()
    assert follower(history, notebook).follow(ID, 1, is_only=True) is Outcome.LOST
    assert notebook.told == ["attempt 1", "attempt 1 lost queued"]


def test_build_that_no_server_took_ends_as_it_did(history: History) -> None:
    notebook = Notebook([lambda: builds.request_cancel(history.store, ID, by="ada")])
    assert follower(history, notebook).follow(ID, 1) is Outcome.CANCELLED
    assert notebook.told == ["build cancelled"]


@pytest.mark.parametrize("word", ["2", "name 2", "main/name 2"])
def test_chosen_step_is_told_alone(history: History, word: str) -> None:
    ref = history.claim()
    for step in (1, 2, 3):
        history.begin(ref, step)
        history.print(ref, step, b"x")
        history.end(ref, step)
    history.close(ref)
    notebook = Notebook()
    follower(history, notebook, choice=Choice(word)).show(builds.get(history.store, ID), 1)
    assert [it for it in notebook.told if it[0] in "be123"] == [
        "begin 2",
        "2: x",
        "end 2 passed",
        "build passed",
    ]


def test_step_that_is_not_there_names_those_that_are(history: History) -> None:
    ref = history.claim()
    history.begin(ref, 1, "test", "unit")
    with pytest.raises(NotFound, match="1 test/unit"):
        follower(history, Notebook(), choice=Choice("nix")).show(builds.get(history.store, ID), 1)


def test_more_output_than_a_page_is_told_whole_and_once(history: History) -> None:
    ref = history.claim()
    numbers = [f"{number:07}\n" for number in range(1_500_000 // 8 * 8)]
    text = "".join(numbers).encode()
    history.begin(ref, 1)
    size = 64 * 1024
    history.print(ref, 1, *(text[at : at + size] for at in range(0, len(text), size)))
    history.end(ref, 1)
    history.begin(ref, 2)
    history.print(ref, 2, b"after")
    history.close(ref)
    notebook = Notebook()
    follower(history, notebook).follow(ID, 1)
    assert "".join(it.removeprefix("1: ") for it in notebook.told if it.startswith("1: ")).encode() == text
    assert notebook.told.index("end 1 passed") < notebook.told.index("begin 2")


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        (0, []),
        (1, ["begin 2", "2: f"]),
        (3, ["begin 2", "2: d\n", "2: e\nf"]),
        (4, ["begin 1", "1: c", "end 1 passed", "begin 2", "2: d\n", "2: e\nf"]),
        (99, ["begin 1", "1: a\nb\n", "1: c", "end 1 passed", "begin 2", "2: d\n", "2: e\nf"]),
    ],
)
def test_tail_goes_back_over_steps(history: History, tail: int, told: list[str]) -> None:
    ref = history.claim()
    history.begin(ref, 1)
    history.print(ref, 1, b"a\nb\n", b"c")
    history.end(ref, 1)
    history.begin(ref, 2)
    history.print(ref, 2, b"d\n", b"e\nf")
    more = lambda: (history.print(ref, 2, b"new"), history.close(ref))  # noqa: E731
    notebook = Notebook([more])
    follower(history, notebook, tail=tail).follow(ID, 1)
    rest = ["2: new", "end 2 passed", "attempt 1 passed ended", "build passed"]
    begun = [] if told else ["begin 2"]
    assert notebook.told == ["attempt 1", *told, *begun, *rest]
