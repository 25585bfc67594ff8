"""How a build looks as text: headings, labels, colours, and a status that garbles nothing."""

from __future__ import annotations

import re

import pytest

from agent import clock
from agent.cli.screen import Screen
from agent.cli.transcript import Transcript, paint_after
from agent.model.build import OutputAccount, OutputChunk, Step
from agent.model.outcome import Outcome

ERASE = "\r\x1b[2K"


def step(number: int, pipeline: str = "main", name: str = "make", outcome: Outcome | None = None) -> Step:
    return Step(
        build_id="b",
        attempt=1,
        step=number,
        pipeline=pipeline,
        pipeline_class="build",
        name=name,
        command="true",
        state="ended" if outcome else "running",
        outcome=outcome,
        detail=None,
        exit_code=None,
        started_at=clock.utc_now(),
        ended_at=clock.utc_now() if outcome else None,
        account=OutputAccount(),
    )


def chunk(number: int, data: bytes) -> OutputChunk:
    return OutputChunk(
        build_id="b", attempt=1, step=number, seq=0, first_line=1, line_count=0, at=clock.utc_now(), data=data
    )


class Show:
    """A transcript, and what it has written."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *, is_terminal: bool = False) -> None:
        self._capsys = capsys
        self.screen = Screen()
        self.screen.is_terminal = is_terminal
        self.transcript = Transcript(self.screen)

    def begin(self, *steps: Step) -> None:
        for it in steps:
            self.transcript.step_begun(it)

    def print(self, it: Step, data: bytes) -> None:
        self.transcript.output(it, chunk(it.step, data))

    def end(self, number: int, pipeline: str = "main", name: str = "make") -> None:
        self.transcript.step_ended(step(number, pipeline, name, Outcome.PASSED))

    @property
    def text(self) -> str:
        return re.sub(r" \([0-9.]+ s\)", "", self._capsys.readouterr().out)


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    return Show(capsys)


def test_step_alone_is_shown_as_it_comes(show: Show) -> None:
    show.begin(step(1))
    show.print(step(1), b"half a ")
    assert show.text == "--- 1 main / make\nhalf a "
    show.print(step(1), b"line\nno end")
    show.end(1)
    assert show.text == "line\nno end\n--- 1 main / make: passed\n"


def test_steps_of_one_pipeline_need_no_label(show: Show) -> None:
    show.begin(step(1))
    show.end(1)
    show.begin(step(2))
    show.print(step(2), b"x\n")
    assert "|" not in show.text


def test_lines_of_pipelines_beside_each_other_name_their_own(show: Show) -> None:
    lint, unit = step(1, "lint", "ruff"), step(2, "test", "unit")
    show.begin(lint)
    show.print(lint, b"alone\nhal")
    show.begin(unit)
    show.print(unit, b"one\ntw")
    show.print(lint, b"f\n")
    show.print(unit, b"o\n")
    assert show.text.splitlines() == [
        "--- 1 lint / ruff",
        "alone",
        "hal",
        "--- 2 test / unit",
        "test/unit | one",
        "lint/ruff | f",
        "test/unit | two",
    ]


def test_label_stays_until_all_have_ended(show: Show) -> None:
    lint, unit = step(1, "lint", "ruff"), step(2, "test", "unit")
    show.begin(lint, unit)
    show.end(1, "lint", "ruff")
    show.print(unit, b"still mine\nrest")
    show.end(2, "test", "unit")
    show.begin(step(3))
    show.print(step(3), b"alone\n")
    assert show.text.splitlines()[3:] == [
        "test/unit | still mine",
        "test/unit | rest",
        "--- 2 test / unit: passed",
        "--- 3 main / make",
        "alone",
    ]


def test_endless_line_is_shown_in_pieces(show: Show) -> None:
    lint, unit = step(1, "lint"), step(2, "test")
    show.begin(lint, unit)
    for _ in range(5):
        show.print(unit, b"x" * 50_000)
    assert show.text.count("x") > 100_000


def test_what_was_held_back_is_shown_when_nothing_more_comes(show: Show) -> None:
    lint, unit = step(1, "lint"), step(2, "test")
    show.begin(lint, unit)
    show.print(unit, b"so far")
    show.transcript.finish()
    assert show.text.endswith("test/make | so far\n")


def test_status_stands_below_whole_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(capsys, is_terminal=True)
    show.screen._is_live = True
    show.begin(step(1))
    assert show.text.endswith("\n")
    show.screen.show_status("busy")
    assert show.text == "\x1b[0mbusy\x1b[0m"
    show.print(step(1), b"line\n")
    assert show.text == f"{ERASE}line\n\x1b[0mbusy\x1b[0m"
    show.print(step(1), b"half")
    assert show.text == f"{ERASE}half"
    show.screen.show_status("busier")
    assert show.text == ""
    show.screen.close()
    assert show.text == "\x1b[0m\n"


def test_colours_of_a_step_outlast_the_status_and_not_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(capsys, is_terminal=True)
    show.begin(step(1))
    show.print(step(1), b"\x1b[31mred\n")
    show.print(step(1), b"still red\n")
    show.end(1)
    text = show.text
    assert "\x1b[31mstill red\n" in text
    assert "\n\x1b[0m--- 1 main / make: passed" in text


def test_labelled_lines_carry_their_colours_each(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(capsys, is_terminal=True)
    lint, unit = step(1, "lint"), step(2, "test")
    show.begin(lint, unit)
    show.print(lint, b"\x1b[31mone\ntwo\x1b[0m\nthree\x1b[5A\n")
    show.print(unit, b"10%\r20%\n")
    assert show.text.splitlines()[2:] == [
        "lint/make | \x1b[31mone\x1b[0m",
        "lint/make | \x1b[31mtwo\x1b[0m\x1b[0m",
        "lint/make | three",
        "test/make | 20%",
    ]


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        ("", "plain", ""),
        ("", "\x1b[1m\x1b[31mx", "\x1b[1m\x1b[31m"),
        ("\x1b[1m", "x\x1b[0mx", ""),
        ("\x1b[1m", "x\x1b[mx", ""),
        ("\x1b[1m", "\x1b[0;32mx", "\x1b[0;32m"),
    ],
)
def test_colours_behind_a_text(before: str, text: str, after: str) -> None:
    assert paint_after(before, text) == after


def test_colours_do_not_pile_up() -> None:
    assert len(paint_after("", "".join(f"\x1b[38;5;{it}m" for it in range(250)))) < 200
