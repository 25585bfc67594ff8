"""How a bake looks in a pipe."""

from __future__ import annotations

import pytest

from agent.cli.bake_display import BakeDisplay
from agent.cli.screen import Screen
from agent.model.image import Phase


def shown(capsys: pytest.CaptureFixture[str], *, fault: str | None, has_output: bool = False) -> str:
    """Run one phase of 25 lines, the last without an end."""
    display = BakeDisplay(Screen(), has_output=has_output)
    display.phase_begun(Phase.SETUP)
    text = "".join(f"line {number}\n" for number in range(24)) + "\x1b[31mline 24\x1b[0m"
    for start in range(0, len(text), 7):
        display.output(text[start : start + 7].encode())
    display.said("and a word")
    display.phase_ended(Phase.SETUP, 61.0, fault)
    return capsys.readouterr().out


def test_phase_that_passed_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, fault=None) == " 4/12 setup    1 min 01 s  done\n"


def test_phase_that_failed_shows_the_end_of_what_was_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, fault="the set-up failed").splitlines()
    assert lines[0] == " 4/12 setup    1 min 01 s  failed"
    assert lines[1:3] == ["    line 6", "    line 7"]
    assert lines[-2:] == ["    and a word", "    line 24"]
    assert len(lines) == 21


def test_all_that_is_printed_is_shown_where_that_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, fault="the set-up failed", has_output=True).splitlines()
    assert lines[0] == "-- setup"
    assert lines[1:25] == [f"line {number}" for number in range(24)]
    assert lines[-1] == " 4/12 setup    1 min 01 s  failed"
