"""A small terminal: bytes that a step printed go in, rows of styled text come out, as a screen would show them.

Carriage returns, erasing and cursor movements do what they do on a screen, within the newest rows. A screen has a
width and a height and these rows have not: nothing wraps, and only a line end makes a new row. So a row keeps the
number that its line has in the record, and a line that only repainted rows above has no row of its own.

Whatever is fed: nothing raises, memory stays within limits, and it does not matter how the bytes were divided.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

from agent.console.live import style as styles
from agent.console.live.row import Row
from agent.console.live.style import PLAIN

UNTOUCHED = -1
# Rows that the cursor can go back to.
HEIGHT = 100
ROWS_LIMIT = 1000
# Characters in all rows; one row may be longer.
_SIZE_LIMIT = 1 << 20
# Columns that one movement may leave blank, and the widest row that is erased or moved in part: either costs work
# by the column, and a sequence of four bytes asks for it.
_MOVE_LIMIT = 1000
_LINK_LIMIT = 2048
_TAB = 8

# ECMA-48. A sequence that is longer than any program's is none. C1 controls count as nothing: in UTF-8 no program
# sends them.
_TOKEN = re.compile(
    r"(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
    r"|(?P<line>\n)"
    r"|\x1b\[(?P<parameters>[0-?]{0,256})(?P<between>[ -/]{0,4})(?P<csi>[@-~])"
    r"|\x1b(?P<string>[\]PX^_])"
    r"|\x1b[ -/]{0,4}(?P<escape>[0-OQ-WYZ\\`-~])"
    r"|(?P<control>[\x00-\x1a\x1c-\x1f\x7f-\x9f])"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]{0,256}[ -/]{0,4}|[ -/]{0,4})\Z")
# An operating system command and its like end so. A line end ends them, too: one that is never closed would hide
# all that follows.
_PRIVATE = ("<", "=", ">", "?")
_STRING_END = re.compile(r"[\x07\n\x18\x1a\x1b]")


class Terminal:
    """The rows of one step.

    Args:
        first_line: the number of the line that the first byte belongs to.
        rows_limit: how many rows are kept, HEIGHT at least.
    """

    def __init__(self, *, first_line: int = 1, rows_limit: int = ROWS_LIMIT) -> None:
        self._rows_limit = max(HEIGHT, rows_limit)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        # What came of an OSC so far, None outside; what other strings say is nobody's business.
        self._string: str | None = None
        self._is_osc = False
        self._style = PLAIN
        self._stamp = 0
        self._line = first_line
        self.dropped_line = 0
        self.dropped_stamp = UNTOUCHED
        self._begin()

    def _begin(self) -> None:
        self._rows: deque[Row] = deque([Row(self._line, UNTOUCHED)])
        self._size = 0
        # The cursor: rows above the newest, and column. `_reach` is how far up it may go.
        self._up = self._column = self._reach = 0
        self._saved = (0, 0, PLAIN)

    @property
    def rows(self) -> deque[Row]:
        """The rows that are kept, oldest first. The newest may be an empty one that nothing was written to yet."""
        return self._rows

    @property
    def shown(self) -> list[Row]:
        """The rows without an empty one that has only been begun."""
        rows = list(self._rows)
        return rows[:-1] if rows[-1].stamp == UNTOUCHED else rows

    def changed(self, after: int) -> Iterator[Row]:
        """Yield rows that changed after a stamp, oldest first; -1: all that are shown."""
        yield from (row for row in self._rows if row.stamp > after)

    def feed(self, data: bytes, stamp: int = 0) -> None:
        """Take the next bytes; rows that change by them get the stamp."""
        self._stamp = stamp
        self._take(self._decoder.decode(data))

    def finish(self) -> None:
        """Show what an incomplete character at the end is shown as: nothing more comes."""
        self._take(self._decoder.decode(b"", final=True))

    def fence(self) -> None:
        """Drop all rows and go on in an empty one, which the cursor cannot leave upwards. Styles stay.

        Call it between two lines, with what stood before a page fed.
        """
        self._begin()

    def _take(self, text: str) -> None:
        text = self._rest + text
        self._rest = ""
        at = 0
        while at < len(text):
            if self._string is not None:
                at = self._take_string(text, at)
                continue
            match = _TOKEN.match(text, at)
            if match is not None:
                at = match.end()
                self._obey(match)
            elif _UNFINISHED.match(text, at):
                self._rest = text[at:]
                return
            else:
                at += 1

    def _obey(self, match: re.Match[str]) -> None:
        kind, what = match.lastgroup, match[match.lastgroup or 0]
        if kind == "text":
            self._write(what)
        elif kind == "line":
            self._end_line()
        elif kind == "csi":
            # Private ones say nothing about what is shown, but for the other screen, which we do not have.
            if not match["between"] and match["parameters"][:1] not in _PRIVATE:
                self._control(what, match["parameters"])
        elif kind == "string":
            self._string, self._is_osc = "", what == "]"
        elif kind == "escape":
            self._escape(what)
        elif what == "\t":
            self._tab()
        elif what in "\r\b":
            self._column = 0 if what == "\r" else max(0, self._column - 1)

    # Strings.

    def _take_string(self, text: str, at: int) -> int:
        """Swallow a string up to its end; return where to go on."""
        end = _STRING_END.search(text, at)
        stop = end.start() if end else len(text)
        body = self._string or ""
        if self._is_osc and len(body) <= _LINK_LIMIT:
            body += text[at : min(stop, at + _LINK_LIMIT + 1)]
        self._string = body
        if end is None:
            return stop
        if end[0] == "\x1b":
            if stop + 1 == len(text):
                # ESC \ ends it, and what comes behind ESC isn't here yet.
                self._rest = text[stop:]
                return len(text)
            self._end_string(is_whole=text[stop + 1] == "\\")
            return stop + 2 if text[stop + 1] == "\\" else stop
        self._end_string(is_whole=end[0] == "\x07")
        return stop if end[0] == "\n" else stop + 1

    def _end_string(self, *, is_whole: bool) -> None:
        body, self._string = self._string or "", None
        if is_whole and self._is_osc and body.startswith("8;") and len(body) <= _LINK_LIMIT:
            address = body.partition(";")[2].partition(";")[2]
            self._style = self._style._replace(link=address if _is_web(address) else None)

    # What is written.

    @property
    def _row(self) -> Row:
        return self._rows[-1 - self._up]

    def _write(self, text: str) -> None:
        row = self._row
        size = row.size
        column = min(self._column, row.width + _MOVE_LIMIT)
        self._column = row.write(column, text, self._style)
        row.stamp = self._stamp
        self._resize(row.size - size)

    def _tab(self) -> None:
        goal = (self._column // _TAB + 1) * _TAB
        if self._column == self._row.width and goal < _MOVE_LIMIT:
            self._write(" " * (goal - self._column))
        else:
            self._column = min(goal, max(_MOVE_LIMIT, self._row.width))

    def _end_line(self) -> None:
        self._line += 1
        self._column = 0
        if self._up:
            self._up -= 1
            if not self._up and self._row.stamp == UNTOUCHED:
                # The lines that repainted rows above have been counted; this row begins with the next one.
                self._row.number = self._line
            return
        if self._row.stamp == UNTOUCHED:
            self._row.stamp = self._stamp
        self._rows.append(Row(self._line, UNTOUCHED))
        self._reach = min(self._reach + 1, HEIGHT - 1)
        self._drop()

    def _resize(self, more: int) -> None:
        self._size += more
        if self._size > _SIZE_LIMIT:
            self._drop()

    def _drop(self) -> None:
        """Let go of the oldest rows over the limits."""
        while len(self._rows) > 1 and (len(self._rows) > self._rows_limit or self._size > _SIZE_LIMIT):
            if self._up == len(self._rows) - 1:
                break
            row = self._rows.popleft()
            self._size -= row.size
            self.dropped_line = row.number
            self.dropped_stamp = max(self.dropped_stamp, row.stamp)
        self._reach = min(self._reach, len(self._rows) - 1)

    # Sequences.

    def _escape(self, what: str) -> None:
        if what == "7":
            self._save()
        elif what == "8":
            self._restore()
        elif what == "M":
            self._move(up=1)
        elif what == "c":
            self._style = PLAIN

    def _control(self, what: str, parameters: str) -> None:
        if what == "m":
            self._style = styles.apply(self._style, parameters)
            return
        numbers = [min(int(it), 99_999) if it.isdecimal() else 0 for it in parameters[:64].split(";")[:2]]
        if what in "KX@P":
            self._edit(what, numbers[0])
        elif what == "J":
            self._erase_display(numbers[0])
        elif what == "s":
            self._save()
        elif what == "u":
            self._restore()
        else:
            self._step(what, *(max(1, number) for number in numbers))

    def _step(self, what: str, count: int, column: int = 1) -> None:
        if what in "AFBEe":
            self._move(up=count if what in "AF" else -count)
            if what in "EF":
                self._column = 0
        elif what in "Ca":
            self._go(self._column + count)
        elif what == "D":
            self._go(self._column - count)
        elif what in "G`":
            self._go(count - 1)
        elif what in "Hfd":
            self._up = max(0, self._reach - (count - 1))
            if what != "d":
                self._go(column - 1)

    def _save(self) -> None:
        self._saved = (self._row.number, self._column, self._style)

    def _move(self, *, up: int) -> None:
        self._up = max(0, min(self._up + up, self._reach))

    def _go(self, column: int) -> None:
        self._column = max(0, min(column, max(_MOVE_LIMIT, self._row.width)))

    def _restore(self) -> None:
        line, self._column, style = self._saved
        self._style = style._replace(link=self._style.link)
        self._up = next((n for n in range(self._reach + 1) if self._rows[-1 - n].number <= line), self._reach)

    def _edit(self, what: str, number: int) -> None:
        row, column = self._row, self._column
        if not row.width:
            return
        size, count = row.size, min(max(1, number), _MOVE_LIMIT)
        if what == "K" and number in (0, 2):
            row.blank(column if number == 0 else 0, None, self._style)
        elif row.width > _MOVE_LIMIT:
            return
        elif what == "K":
            row.blank(0, column + 1, self._style)
        elif what == "X":
            row.blank(column, column + count, self._style)
        elif what == "@":
            row.insert(column, count)
        else:
            row.delete(column, count)
        row.stamp = self._stamp
        self._resize(row.size - size)

    def _erase_display(self, number: int) -> None:
        """Erase rows. A whole screen is not erased but left behind, as if it had been scrolled away.

        Programs that clear the screen before each run would otherwise take with them what failed before.
        """
        if number == 0:
            self._edit("K", 0)
            for n in range(self._up):
                self._blank_row(self._rows[-1 - n])
        elif number == 1:
            for n in range(self._up + 1, self._reach + 1):
                self._blank_row(self._rows[-1 - n])
            self._edit("K", 1)
        elif number in (2, 3):
            self._up = self._reach = 0
            self._blank_row(self._row)

    def _blank_row(self, row: Row) -> None:
        if row.width:
            size = row.size
            row.blank(0, None, PLAIN)
            row.stamp = self._stamp
            self._resize(row.size - size)


def _is_web(address: str) -> bool:
    """Whether an address is one that a link may lead to."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and address.isprintable()
