"""One row of a terminal: text in styles, appended to or written over, as wide and as long as limits allow."""

from __future__ import annotations

import unicodedata
from typing import Any

from agent.console.live.style import PLAIN, Style, classes

# What one row shows at most; programs print whole bundles of JavaScript in a line. The raw output has it all.
LENGTH_LIMIT = 20_000
# Links of a row in all: one of 2,000 characters may be set and left behind letter by letter.
_LINKS_LIMIT = 20_000
# Accents on one letter.
_MARKS_LIMIT = 8

Run = tuple[str, Style]


class Row:
    """A row. `number` is the line's in the record, `stamp` that of its newest change."""

    __slots__ = ("_cells", "_length", "_runs", "cut", "number", "stamp", "width")

    def __init__(self, number: int, stamp: int) -> None:
        self.number = number
        self.stamp = stamp
        self.width = 0
        # Characters that went over the limit.
        self.cut = 0
        # As long as text is only appended there are runs; once it is written over, cells: one for each column, the
        # second of a wide character empty.
        self._runs: list[Run] = []
        self._cells: list[Run] | None = None
        self._length = 0

    @property
    def size(self) -> int:
        """About how many characters it holds."""
        return self._length

    def write(self, column: int, text: str, style: Style) -> int:
        """Write text at a column and return the column behind it. What goes over the limit is counted, not kept."""
        room = LENGTH_LIMIT - max(column, self._length if column >= self.width else 0)
        if len(text) > room:
            self.cut += len(text) - max(0, room)
            text = text[: max(0, room)]
            if not text:
                return column
        if column > self.width:
            self._append(" " * (column - self.width), PLAIN)
        if column == self.width and self._cells is None:
            self._append(text, style)
            return self.width
        cells = self._as_cells()
        text = self._mark(column, text)
        new = cells_of(text, style)
        self._split_wide(column)
        self._split_wide(column + len(new))
        cells[column : column + len(new)] = new
        self._measure()
        return column + len(new)

    def blank(self, begin: int, end: int | None, style: Style) -> None:
        """Erase columns; to the end of the row they are gone, else they keep the style's ground."""
        if begin >= self.width:
            return
        cells = self._as_cells()
        self._split_wide(begin)
        if end is None or end >= self.width:
            del cells[begin:]
        else:
            self._split_wide(end)
            cells[begin:end] = [(" ", PLAIN._replace(ground=style.ground))] * (end - begin)
        if not cells:
            self._runs, self._cells, self.cut = [], None, 0
        self._measure()

    def insert(self, column: int, count: int) -> None:
        """Push what stands at a column and behind it to the right."""
        if column < self.width:
            self._split_wide(column)
            self._as_cells()[column:column] = [(" ", PLAIN)] * count
            del self._as_cells()[LENGTH_LIMIT:]
            self._measure()

    def delete(self, column: int, count: int) -> None:
        """Take columns away; what stands behind them moves to the left."""
        if column < self.width:
            self._split_wide(column)
            self._split_wide(column + count)
            del self._as_cells()[column : column + count]
            self._measure()

    def runs(self) -> list[Run]:
        """Return the text in runs of one style each."""
        if self._cells is not None:
            self._runs = []
            for text, style in self._cells:
                if self._runs and self._runs[-1][1] == style:
                    self._runs[-1] = (self._runs[-1][0] + text, style)
                else:
                    self._runs.append((text, style))
        if sum(len(style.link) for _, style in self._runs if style.link) > _LINKS_LIMIT:
            return [(text, style._replace(link=None)) for text, style in self._runs]
        return self._runs

    def plain(self) -> list[Any]:
        """Return `[number, run, ...]` as JSON has it: a run is a text, `[text, classes]` or `[text, classes, link]`."""
        told: list[Any] = [self.number]
        for text, style in self.runs():
            if style == PLAIN:
                told.append(text)
            elif style.link is None:
                names = classes(style)
                told.append([text, names] if names else text)
            else:
                told.append([text, classes(style._replace(link=None)), style.link])
        if self.cut:
            told.append([f" … {self.cut:,} characters more, in the raw output", "cut"])
        return told

    def _append(self, text: str, style: Style) -> None:
        if self._cells is not None:
            self._cells.extend(cells_of(text, style))
            self._measure()
            return
        if self._runs and self._runs[-1][1] == style:
            self._runs[-1] = (self._runs[-1][0] + text, style)
        else:
            self._runs.append((text, style))
        self._length += len(text)
        self.width += len(text) if text.isascii() else len(cells_of(text, style))

    def _as_cells(self) -> list[Run]:
        if self._cells is None:
            self._cells = []
            for text, style in self._runs:
                self._cells.extend(cells_of(text, style))
            self._measure()
        return self._cells

    def _measure(self) -> None:
        if self._cells is not None:
            self.width = self._length = len(self._cells)
        else:
            self.width = self._length = 0

    def _mark(self, column: int, text: str) -> str:
        """Put marks with which a text begins on the character before it; return what is behind them."""
        cells = self._as_cells()
        rest = text
        while rest and not rest[0].isascii() and _is_mark(rest[0]):
            at = column - 2 if column > 1 and not cells[column - 1][0] else column - 1
            if at >= 0 and len(cells[at][0]) <= _MARKS_LIMIT:
                cells[at] = (cells[at][0] + rest[0], cells[at][1])
            rest = rest[1:]
        return rest

    def _split_wide(self, column: int) -> None:
        """Make blanks of a wide character that a change would cut in two at `column`."""
        cells = self._as_cells()
        if 0 < column < len(cells) and not cells[column][0]:
            cells[column - 1] = (" ", cells[column - 1][1])
            cells[column] = (" ", cells[column][1])


def cells_of(text: str, style: Style) -> list[Run]:
    """Return text as cells: marks that take no place go with the character before, wide ones take two."""
    if text.isascii():
        return [(character, style) for character in text]
    cells: list[Run] = []
    for character in text:
        if _is_mark(character):
            at = -2 if len(cells) > 1 and not cells[-1][0] else -1
            if cells and len(cells[at][0]) <= _MARKS_LIMIT:
                cells[at] = (cells[at][0] + character, style)
            continue
        cells.append((character, style))
        if unicodedata.east_asian_width(character) in ("W", "F"):
            cells.append(("", style))
    return cells


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me", "Cf")
