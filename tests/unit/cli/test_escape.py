"""What reaches a terminal, and what a pipe, of what a step printed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.escape import Cleaner

HOSTILE = {
    "title": "\x1b]0;you\x07",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x1b\\",
    "device control": "\x1bP$q\x1b\\",
    "report": "\x1b[6n",
    "identify": "\x1b[c",
    "hide cursor": "\x1b[?25l",
    "alternate screen": "\x1b[?1049h",
    "resize": "\x1b[8;1;1t",
    "reset": "\x1bc",
    "charset": "\x0e",
    "bell": "\x07",
    "8-bit CSI": "\x9b6n",
    "8-bit OSC": "\x9d0;you",
}
PAINTED = "\x1b[1;31mred\x1b[0m \x1b[38;5;9mpalette\x1b[38:2::1:2:3mtrue\x1b[K"


def clean(text: str | bytes, *, is_terminal: bool, cut_at: int | None = None) -> str:
    data = text.encode() if isinstance(text, str) else text
    cleaner = Cleaner(is_terminal=is_terminal)
    parts = [data] if cut_at is None else [data[:cut_at], data[cut_at:]]
    return "".join(map(cleaner.feed, parts)) + cleaner.finish()


@pytest.mark.parametrize("name", HOSTILE)
def test_terminal_gets_nothing_that_speaks_to_it(name: str) -> None:
    shown = clean(f"before{HOSTILE[name]}after\n", is_terminal=True)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert shown.startswith("before")
    assert shown.endswith("after\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_sequence_is_known_wherever_it_is_split(name: str) -> None:
    text = f"a{HOSTILE[name]}b".encode()
    whole = clean(text, is_terminal=True)
    assert {clean(text, is_terminal=True, cut_at=at) for at in range(len(text) + 1)} == {whole}


def test_terminal_keeps_colours_and_movement() -> None:
    assert clean(PAINTED, is_terminal=True) == PAINTED
    assert clean("10%\r20%\x1b[A\b", is_terminal=True) == "10%\r20%\x1b[A\b"


def test_pipe_gets_plain_text() -> None:
    assert clean(PAINTED, is_terminal=False) == "red palettetrue"


def test_carriage_return_loses_nothing_in_a_pipe() -> None:
    assert clean("10%\r20%\rdone\r\nnext\r\r\n", is_terminal=False) == "10%\n20%\ndone\nnext\n"


def test_line_end_of_two_characters_may_be_split() -> None:
    cleaner = Cleaner(is_terminal=False)
    assert cleaner.feed(b"one\r") + cleaner.feed(b"\ntwo") == "one\ntwo"


def test_invalid_utf8_is_replaced_and_split_characters_are_not() -> None:
    assert clean(b"caf\xc3\xa9 \xff\n", is_terminal=False, cut_at=4) == "caf\u00e9 \ufffd\n"


def test_string_that_is_never_closed_swallows_no_output() -> None:
    shown = clean("\x1b]0;open\nall this is output\n", is_terminal=True)
    assert shown.endswith("\nall this is output\n")


@given(st.text(st.sampled_from("\x1b[]0;m?A\x07\\\r\n\x9bPab"), max_size=40), st.integers(0, 40))
def test_text_is_the_same_however_it_comes(text: str, cut_at: int) -> None:
    data = text.encode()
    cut_at = min(cut_at, len(data))
    for is_terminal in (True, False):
        whole = clean(data, is_terminal=is_terminal)
        assert clean(data, is_terminal=is_terminal, cut_at=cut_at) == whole
        assert "\x9b" not in whole


@given(st.binary(max_size=200))
def test_no_bytes_bring_a_control_character_into_a_pipe(data: bytes) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean(data, is_terminal=False))


def test_movement_is_told_and_can_be_refused() -> None:
    cleaner = Cleaner(is_terminal=True)
    cleaner.feed(b"\x1b[31m")
    assert not cleaner.has_moved
    cleaner.feed(b"\x1b[2A")
    assert cleaner.has_moved
    assert Cleaner(is_terminal=True, may_move=False).feed(b"\x1b[2Ax") == "x"
