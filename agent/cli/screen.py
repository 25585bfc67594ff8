"""The terminal, or the pipe in its place: text, notes, and one line of status that never mixes with either.

Owns standard output and standard error of a command that prints as things happen. Plain escape sequences, no
library: the status is drawn below the text, taken away before each write and drawn again, in one write.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from agent import clock
from agent.cli.interrupt import Interrupt

# As shells count: 128 and the number of SIGINT.
INTERRUPTED = 130
_ERASE_LINE = "\r\x1b[2K"
_DIM = "\x1b[2m"
_RESET = "\x1b[0m"
_REDRAW_S = 0.1


def is_terminal() -> bool:
    """Whether a person looks at standard output, on a terminal that can do more than print."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_colour() -> bool:
    """Whether to paint: on a terminal, unless NO_COLOR says no (https://no-color.org)."""
    return is_terminal() and not os.environ.get("NO_COLOR")


class ReaderGone(Exception):
    """Whoever read our output has gone, as `head` does; not an error."""


class Screen:
    """Used by one thread. `is_live`: a status is wanted; without a terminal there is none."""

    def __init__(self, *, is_live: bool = True) -> None:
        self.is_terminal = is_terminal()
        self.has_colour = has_colour()
        self._is_live = is_live and self.is_terminal
        self._is_at_line_start = True
        self._is_shown = False
        self._status = ""
        self._drawn_at_mono = 0.0
        self._width = 80
        self._poll = _watched_output()
        self._interrupt = Interrupt()
        if hasattr(sys.stdout, "reconfigure"):
            # A terminal of another encoding gets a question mark for what it can't show, not a traceback.
            sys.stdout.reconfigure(errors="replace")

    @property
    def is_at_line_start(self) -> bool:
        """Whether what was written last ended with a line end."""
        return self._is_at_line_start

    def write(self, text: str) -> None:
        """Write text to standard output at once."""
        self._interrupt.check()
        if not text:
            return
        self._is_at_line_start = text.endswith("\n")
        self._send(self._take_away() + text + self._drawn())

    def write_bytes(self, data: bytes) -> None:
        """Write bytes to standard output as they are."""
        self._interrupt.check()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def end_line(self) -> None:
        """Make sure that what comes next begins a line."""
        if not self._is_at_line_start:
            self.write("\n")

    def note(self, text: str) -> None:
        """Say something about the command itself, on a line of its own on standard error."""
        if self.is_terminal and sys.stderr.isatty():
            self._send(self._take_away() + _RESET + ("" if self._is_at_line_start else "\n"))
            self._is_at_line_start = True
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        if drawn := self._drawn():
            self._send(drawn)

    def show_status(self, status: str) -> None:
        """Draw the line of status, or draw it anew; nothing while the last line of text is open.

        Args:
            status: one line without control characters; cut to the terminal's width.
        """
        if not self._is_live:
            return
        now_mono = clock.mono()
        if status == self._status and self._is_shown:
            return
        if self._is_shown and now_mono - self._drawn_at_mono < _REDRAW_S:
            return
        self._width = shutil.get_terminal_size().columns
        self._status = status
        self._send(self._take_away() + self._drawn())
        self._drawn_at_mono = now_mono

    def hide_status(self) -> None:
        """Take the line of status away until `show_status` is called again."""
        self._status = ""
        if taken := self._take_away():
            self._send(taken)

    def pause(self, seconds: float) -> None:
        """Wait. Raises: ReaderGone when nobody reads standard output any more."""
        with self._interrupt.waiting():
            if self._poll is None:
                clock.sleep(seconds)
            elif self._poll.poll(seconds * 1000):
                raise ReaderGone

    @contextmanager
    def watching(self, on_interrupt: str) -> Iterator[None]:
        """Leave the terminal in order however the watching inside ends.

        Args:
            on_interrupt: what to say after Ctrl-C, which ends the watching and nothing else: exit code 130.
        """
        try:
            with self._interrupt.heard():
                yield
        except BaseException:
            # After Ctrl-C whatever comes out is its doing.
            if not self._interrupt.is_pending:
                raise
            self.close()
            self.note(on_interrupt)
            raise click.exceptions.Exit(INTERRUPTED) from None
        finally:
            # The reader of a pipe may have gone; there is nothing to leave in order then.
            with suppress(BrokenPipeError):
                self.close()

    def close(self) -> None:
        """Leave the terminal as it was found: no status, no colour, the cursor at the beginning of a line."""
        self.hide_status()
        if self.is_terminal:
            self._send(_RESET + ("" if self._is_at_line_start else "\n"))
            self._is_at_line_start = True

    def _take_away(self) -> str:
        if not self._is_shown:
            return ""
        self._is_shown = False
        return _ERASE_LINE

    def _drawn(self) -> str:
        if not (self._is_live and self._status and self._is_at_line_start):
            return ""
        self._is_shown = True
        # One column is left free: a full line would wrap, and could not be erased as one.
        text = cut(self._status, self._width - 1)
        return f"{_RESET}{_DIM if self.has_colour else ''}{text}{_RESET}"

    def _send(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()


def cut(text: str, width: int) -> str:
    """Return the beginning of a text that takes up to `width` columns of a terminal."""
    if len(text) * 2 <= width:
        return text
    from rich.cells import cell_len, chop_cells

    return text if cell_len(text) <= width else next(iter(chop_cells(text, max(1, width))), "")


def _watched_output() -> select.poll | None:
    """Return a poll that wakes when the other end of standard output is closed; `None` where that can't be."""
    try:
        poll = select.poll()
        # No event is asked for: POLLERR, the closed end of a pipe, is always told.
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return None
    return poll
