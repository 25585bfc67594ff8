"""What a step prints comes back byte for byte, and as lines in SQL, whatever it was (F22)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from sqlalchemy import text

from agent.model.outcome import Outcome
from agent.store import steps
from tests.acceptance.farm import Farm

_dice = random.Random(22)

OUTPUTS: dict[str, bytes] = {
    "nothing": b"",
    "every byte": bytes(range(256)) * 300,
    "noise": _dice.randbytes(300_000),
    "invalid UTF-8": b"caf\xe9\n\xff\xfe\n\xc3\n\xe2\x82\n\xed\xa0\x80\n\xf8\x88\x80\x80\x80\n",
    "NUL": b"a\0b\n\0\n\0",
    "ANSI": b"\x1b[31mred\x1b[0m\n\x1b]0;title\x07\x1b[2K\x1b[1G\x1b(B\n\x9b31m\n",
    "progress": b"".join(b"\r%3d%%" % percent for percent in range(101)) + b"\n",
    "CRLF": b"one\r\ntwo\r\n\r\n\n\r",
    "no final newline": b"first\nlast",
    "line ends alone": b"\n" * 1000,
    "one long line": b"x" * 300_000 + b"\n",
    "characters across chunks": "\u20ac\U0001f600\u00e9".encode() * 40_000 + b"\nend\n",
    "backslashes": b"\\n \\\\ \\134 \\x41 %s {}\n",
}


@pytest.mark.slow
def test_f22_bytes_come_back_exactly_and_sql_has_their_lines(farm: Farm, tmp_path: Path) -> None:
    farm.agent()
    for number, data in enumerate(OUTPUTS.values()):
        (tmp_path / str(number)).write_bytes(data)
    build_id = farm.submit({"steps": [f"cat {tmp_path / str(number)}" for number in range(len(OUTPUTS))]})
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    accounts = {item.step: item.account for item in steps.list_steps(farm.store, build_id, 1)}
    for step, (name, data) in enumerate(OUTPUTS.items(), start=1):
        assert farm.output(build_id, step=step) == data, name
        account = accounts[step]
        assert (account.bytes_produced, account.bytes_stored, account.bytes_cut) == (len(data), len(data), 0)
        lines = data.removesuffix(b"\n").split(b"\n") if data else []
        assert (account.lines_produced, account.lines_stored) == (len(lines), len(lines)), name
        rows = lines_of(farm, build_id, step)
        assert [number for number, _ in rows] == list(range(1, len(lines) + 1)), name
        for (_, shown), line in zip(rows, lines, strict=True):
            if line.isascii() and b"\0" not in line:
                assert shown == line.decode(), name


def test_f22_output_in_pieces_of_characters_and_lines_is_joined(farm: Farm) -> None:
    farm.agent()
    # Each write falls into a chunk of its own, as a pause lies behind it.
    pieces = ["caf\\303", "\\251 o", "ne\\nt", "wo\\r", "\\n\\377", "\\n"]
    build_id = farm.submit("; ".join(f"printf '{piece}'; sleep 0.15" for piece in pieces))
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.output(build_id) == b"caf\xc3\xa9 one\ntwo\r\n\xff\n"
    rows = lines_of(farm, build_id, 1)
    assert rows[:2] == [(1, "caf\u00e9 one"), (2, "two\r")]
    assert rows[2][0] == 3


def test_f22_pty_output_is_stored_as_the_terminal_gave_it(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent()
    build_id = farm.submit(
        {"steps": [{"run": r"printf '\033[1mbold\033[0m\n10%%\r20%%\n\377'", "pty": True}]}
    )
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.output(build_id) == b"\x1b[1mbold\x1b[0m\r\n10%\r20%\r\n\xff"


def lines_of(farm: Farm, build_id: str, step: int) -> list[tuple[int, str]]:
    """Return a step's lines as anybody with SQL sees them."""
    query = text(
        "SELECT line_no, text FROM output_lines WHERE build_id = :build AND attempt = 1 AND step = :step"
        " ORDER BY line_no"
    )
    with farm.store.read() as connection:
        return [
            (row.line_no, row.text) for row in connection.execute(query, {"build": build_id, "step": step})
        ]
