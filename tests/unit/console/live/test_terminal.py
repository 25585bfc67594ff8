"""The terminal: what screens show, whatever programs print, and whoever wants to do harm with it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.console.live import style
from agent.console.live.row import LENGTH_LIMIT
from agent.console.live.terminal import Terminal

STATIC = Path(style.__file__).parents[1] / "static"


def shown(*pieces: bytes, first_line: int = 1) -> Terminal:
    terminal = Terminal(first_line=first_line)
    for piece in pieces:
        terminal.feed(piece)
    terminal.finish()
    return terminal


def texts(*pieces: bytes) -> list[str]:
    return ["".join(text for text, _ in row.runs()) for row in shown(*pieces).shown]


def runs(data: bytes) -> list[object]:
    (row,) = shown(data).shown
    return list(row.plain()[1:])


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\n\nx\n", ["", "", "x"]),
        (b" 10%\r 20%\r100%\ndone\n", ["100%", "done"]),
        (b"long text\rshort", ["shorttext"]),
        (b"long text\r\x1b[Kshort", ["short"]),
        (b"abc\b\bX", ["aXc"]),
        (b"\bx", ["x"]),
        (b"a\tb\n1234567\tc\n12345678\td", ["a       b", "1234567 c", "12345678        d"]),
        (b"one\ntwo\nthree\x1b[2A\rONE\x1b[B\x1b[3GX", ["ONE", "twX", "three"]),
        (b"a\nb\nc\n\x1b[3A\x1b[Jnew\n", ["new", "", ""]),
        (b"a\nb\x1b[1A\x1b[99A\x1b[GZ", ["Z", "b"]),
        (b"abcdef\x1b[3D\x1b[1K", ["    ef"]),
        (b"abcdef\x1b[4D\x1b[2X", ["ab  ef"]),
        (b"abcdef\x1b[4D\x1b[2P", ["abef"]),
        (b"abcdef\x1b[4D\x1b[2@", ["ab  cdef"]),
        (b"x\x1b[2Cy\x1b[10Gz", ["x  y     z"]),
        (b"\x1b7saved\x1b8S", ["Saved"]),
        (b"before\n\x1b[2J\x1b[Hafter", ["before", "after"]),
        (b"a\nb\n\x1b[Hc", ["c", "b"]),
        (b"\x1b]0;title\x07text\x1b]52;c;aGk=\x1b\\!", ["text!"]),
        (b"\x1bP1$r0m\x1b\\x\x1b_apc\x1b\\y\x1b^pm\x1b\\z", ["xyz"]),
        (b"\x1b]0;never closed\nnext", ["", "next"]),
        (b"\x1b[?25lhidden cursor\x1b[?25h\x1b[>c\x1b(B\x1b=", ["hidden cursor"]),
        (b"nul\x00bel\x07vt\x0bff\x0c\x7f\xc2\x9b31m", ["nulbelvtff31m"]),
        (b"\xff\xfe\xc3(", ["\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}("]),
        ("日本\rX".encode(), ["X 本"]),
        ("日本\x1b[3GX".encode(), ["日X "]),
        ("e\u0301\rE".encode(), ["E"]),
        (b"text\x1b[2K", [""]),
    ],
)
def test_shows_what_a_screen_would(printed: bytes, expected: list[str]) -> None:
    assert texts(printed) == expected
    assert texts(*(bytes([byte]) for byte in printed)) == expected


def test_rows_carry_the_numbers_of_the_record() -> None:
    bars = b"".join(b"\x1b[2A layer 1 %d%%\n layer 2 %d%%\n" % (n, n) for n in range(50))
    terminal = shown(b"begin\n\n\n" + bars + b"end\n")
    assert [(row.number, row.plain()[1:]) for row in terminal.shown] == [
        (1, ["begin"]),
        (2, [" layer 1 49%"]),
        (3, [" layer 2 49%"]),
        (104, ["end"]),
    ]


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (b"\x1b[1;31mred\x1b[0m plain", [["red", "b f1"], " plain"]),
        (b"\x1b[91;44mx", [["x", "f9 g4"]]),
        (b"\x1b[2;3;4;9mx\x1b[22;23;24;29my", [["x", "d i u s"], "y"]),
        (b"\x1b[7mx\x1b[27my", [["x", "fx gx"], "y"]),
        (b"\x1b[31;7mx", [["x", "fx g1"]]),
        (b"\x1b[38;5;208mx\x1b[39my", [["x", "f208"], "y"]),
        (b"\x1b[48:5:17mx\x1b[49my", [["x", "g17"], "y"]),
        (b"\x1b[38;2;255;0;0mx", [["x", "f196"]]),
        (b"\x1b[38:2::255:0:0mx", [["x", "f196"]]),
        (b"\x1b[48;2;100;100;100;1mx", [["x", "b g241"]]),
        (b"\x1b[58;5;1;4mx", [["x", "u"]]),
        (b"\x1b[4:3mx\x1b[4:0my", [["x", "u"], "y"]),
        (b"\x1b[38;5;999mx\x1b[38mx\x1b[38;2;1mx\x1b[99999999mx\x1b[38;2;300;0;0mx", ["xxxxx"]),
        (b"\x1b[mx\x1b[;;mx\x1b[107mx", ["xx", ["x", "g15"]]),
        (
            b"\x1b]8;;https://example.com/a\x07link\x1b]8;;\x07 text",
            [["link", "", "https://example.com/a"], " text"],
        ),
        (b"\x1b]8;id=1;http://x/\x1b\\l", [["l", "", "http://x/"]]),
        (b"\x1b]8;;javascript:alert(1)\x07l", ["l"]),
        (b"\x1b]8;;data:text/html,x\x07l\x1b]8;;https://\x07l\x1b]8;;http://[x\x07l", ["lll"]),
        (b"\x1b]8;;https://e/" + b"x" * 3000 + b"\x07l", ["l"]),
    ],
)
def test_styles_become_classes(printed: bytes, expected: list[object]) -> None:
    assert runs(printed) == expected


def test_style_goes_on_over_lines_and_beyond_a_fence() -> None:
    terminal = Terminal(first_line=6)
    terminal.feed(b"\x1b[32mbefore\n")
    terminal.fence()
    terminal.feed(b"\x1b[5Agreen\n")
    assert [row.plain() for row in terminal.shown] == [[7, ["green", "f2"]]]


def test_changed_rows_are_known_by_their_stamp() -> None:
    terminal = Terminal()
    terminal.feed(b"one\ntwo\nthree", 0)
    terminal.feed(b"\x1b[2A\rONE", 1)
    assert [row.number for row in terminal.changed(0)] == [1]
    assert [row.number for row in terminal.changed(-1)] == [1, 2, 3]


def test_only_the_newest_rows_are_kept() -> None:
    terminal = Terminal(rows_limit=200)
    terminal.feed(b"".join(b"%d\n" % n for n in range(1, 1001)), 7)
    assert [row.number for row in terminal.shown] == list(range(802, 1001))
    assert (terminal.dropped_line, terminal.dropped_stamp) == (801, 7)
    terminal.feed(b"\x1b[9999A\rX")
    assert [row.number for row in terminal.shown if row.plain()[1:] == ["X02"]] == [902]


def test_long_line_is_cut_and_says_so() -> None:
    (row,) = shown(b"x" * (LENGTH_LIMIT + 1234)).shown
    text, mark = row.plain()[1:]
    assert (len(text), mark) == (LENGTH_LIMIT, [" … 1,234 characters more, in the raw output", "cut"])


# What is fed is made of pieces that mean something, and of noise.
_SEQUENCES = st.sampled_from(
    [
        *(
            b"\n",
            b"\r",
            b"\r\n",
            b"\b",
            b"\t",
            b"\x1b[K",
            b"\x1b[1K",
            b"\x1b[2K",
            b"\x1b[J",
            b"\x1b[1J",
            b"\x1b[2J",
        ),
        *(b"\x1b[A", b"\x1b[2A", b"\x1b[B", b"\x1b[C", b"\x1b[3D", b"\x1b[5G", b"\x1b[99999C", b"\x1b[999A"),
        *(
            b"\x1b[1m",
            b"\x1b[31m",
            b"\x1b[0m",
            b"\x1b[38;2;1;2;3m",
            b"\x1b[7m",
            b"\x1b7",
            b"\x1b8",
            b"\x1b[H",
        ),
        *(
            b"\x1b]8;;https://example.com/\x07",
            b"\x1b]8;;\x1b\\",
            b"\x1b]0;t",
            b"\x1bP",
            b"\x1b",
            b"\x1b[",
            b"\x1b[3",
        ),
        *(
            b"\x1b[2P",
            b"\x1b[3@",
            b"\x1b[2X",
            b"\x1b[9999@",
            b"<script>alert(1)</script>",
            b"&\"'",
            b"\xc2\x9b",
        ),
        *(
            "日本".encode(),
            "é".encode(),
            "e\u0301".encode(),
            "\u0301".encode(),
            "\u200b".encode(),
            b"\xe2\x82",
            b"\xff",
        ),
    ]
)
_OUTPUT = st.lists(
    st.one_of(_SEQUENCES, st.binary(max_size=8), st.text(max_size=5).map(str.encode)), max_size=60
)


@settings(max_examples=400, deadline=None)
@given(pieces=_OUTPUT, cuts=st.lists(st.integers(0, 400), max_size=12))
@example(pieces=[b"\x1b]0;t", b"\x1b", b"\\x"], cuts=[6])
def test_division_into_chunks_makes_no_difference(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [data[a:b] for a, b in pairwise(places)]
    one, other = shown(data), shown(*parts)
    assert [row.plain() for row in one.shown] == [row.plain() for row in other.shown]


@settings(max_examples=200, deadline=None)
@given(pieces=_OUTPUT)
def test_numbers_ascend_and_nothing_is_left_that_steers(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    terminal = shown(data)
    numbers = [row.number for row in terminal.shown]
    assert numbers == sorted(set(numbers))
    assert not numbers or numbers[-1] <= data.count(b"\n") + 1
    for row in terminal.shown:
        text = "".join(text for text, _ in row.runs())
        assert not any(ord(it) < 32 or 127 <= ord(it) < 160 for it in text)


@pytest.mark.parametrize(
    "printed",
    [
        b"\x1b[1000Cx\n",
        b"\x1b]8;;https://e/" + b"x" * 2000 + b"\x07" + b"\x1b[1mx\x1b[0mx" * 9000 + b"\n",
        b"x" + "\u0301".encode() * 50_000,
        b"x" * 100_000,
        b"\x1b]0;" + b"x" * 100_000,
        b"\x1b[" + b"1;" * 50_000,
        b"y\x1b[2K" + b"\x1b[99999C.",
        b"\x1b[9999@" * 10,
        b"\n\x1b[99A",
    ],
    ids=lambda it: repr(it[:12]),
)
def test_hostile_output_takes_bounded_memory(printed: bytes) -> None:
    terminal = Terminal()
    for _ in range(max(1, 300_000 // len(printed))):
        terminal.feed(printed)
    assert sum(row.size for row in terminal.rows) <= 3 << 20
    assert len(terminal._rest) < 300
    assert len(terminal._string or "") < 5000
    assert max(len(json.dumps(row.plain())) for row in terminal.rows) < 1 << 20


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *(
                    b"\r\n",
                    b"\r",
                    b"\b",
                    b"\x1b[K",
                    b"\x1b[1K",
                    b"\x1b[2K",
                    b"\x1b[A",
                    b"\x1b[2A",
                    b"\x1b[B",
                    b"\x1b[C",
                ),
                *(
                    b"\x1b[3D",
                    b"\x1b[4G",
                    b"\x1b[J",
                    b"\x1b[2P",
                    b"\x1b[2@",
                    b"\x1b[2X",
                    b"\x1b[1m",
                    b"\x1b[32m",
                ),
                *(
                    b"\x1b[0m",
                    b"abc",
                    b"  ",
                    b"x",
                    b"12345",
                    b"\x1b[38;5;9m",
                    b"\x1b[44m",
                    b"\x1b[7m",
                    b"\x1b[39;49m",
                ),
                *(b"\x1b[?25l", b"\x1b]0;title\x07"),
            ]
        ),
        max_size=40,
    )
)
def test_shows_what_pyte_shows(pieces: list[bytes]) -> None:
    """Everything stays within what both have: no wrapping, no scrolling, no line that is not there."""
    screen = pyte.Screen(220, 45)
    stream = pyte.ByteStream(screen)
    terminal = Terminal()
    for piece in pieces:
        # A screen goes down where we have no row: where ours stays, it has to stay.
        if piece == b"\x1b[B" and not terminal._up:
            continue
        terminal.feed(piece)
        stream.feed(piece)
    got = ["".join(text for text, _ in row.runs()).rstrip() for row in terminal.rows]
    assert got + [""] * (45 - len(got)) == [line.rstrip() for line in screen.display]
    for y, row in enumerate(terminal.rows):
        x = 0
        for text, look in row.runs():
            for letter in text:
                if letter != " ":
                    cell = screen.buffer[y][x]
                    assert (cell.bold, cell.reverse) == (bool(look.flags & 1), bool(look.flags & 32))
                    assert (cell.fg != "default", cell.bg != "default") == (
                        look.colour >= 0,
                        look.ground >= 0,
                    )
                x += 1


def test_style_sheet_of_colours_is_as_made() -> None:
    assert (STATIC / "output-colours.css").read_text() == style.sheet()


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_nearest_colour_is_the_nearest(wanted: tuple[int, int, int]) -> None:
    def distance(colour: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(style.rgb(colour), wanted, strict=True))

    assert distance(style.nearest(*wanted)) == min(distance(colour) for colour in range(16, 256))
