"""What a step printed, made fit to be shown: text of bytes, without what would speak to the reader's terminal.

Builds run strangers' programs, and a terminal obeys more than colours: it can be made to set its title, fill the
clipboard, answer questions as if somebody had typed. So a terminal gets what paints and moves, and nothing else;
a pipe gets plain text.
"""

from __future__ import annotations

import codecs
import re

# ECMA-48: CSI sequences; strings (OSC, DCS, SOS, PM, APC) up to their end; other escapes; control characters.
# A string holds no line end, so one that is never closed swallows no output.
_CONTROL = (
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_ALL = re.compile(_CONTROL)
# A terminal keeps what the first group holds: colours, erasing in the line, what moves. Private forms (`?25l`
# hides the cursor) are not among it. One pass without a call for each match: colours come by the thousand.
_MOVE = re.compile(r"\x1b\[[0-9;:]*[ABCDEFGHJLMPX@df]")
_BUT_PAINT = re.compile(rf"(\x1b\[[0-9;:]*[mK]|[\r\b])|{_CONTROL}")
_BUT_PAINT_AND_MOVE = re.compile(rf"(\x1b\[[0-9;:]*[mK]|[\r\b]|{_MOVE.pattern})|{_CONTROL}")
_SUSPECT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What may be the beginning of a sequence whose rest comes with the next bytes.
_UNFINISHED = re.compile(r"(?:\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]*)|\r+)\Z")
_UNFINISHED_LIMIT = 4096
# A terminal in between turns the CRLF of a program into CR CR LF.
_LINE_END = re.compile(r"\r+\n")


class Cleaner:
    """Turns one step's bytes into text, piece by piece; sequences and characters may be split anywhere.

    Args:
        is_terminal: keep what paints and moves. Otherwise only text is left, and each carriage return that is
            not part of a line end begins a new line: nothing that was printed is lost.
        may_move: keep what moves the cursor, too; not where lines of several steps stand between each other.
    """

    def __init__(self, *, is_terminal: bool, may_move: bool = True) -> None:
        self._is_terminal = is_terminal
        self.may_move = may_move
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self.has_moved = False

    def feed(self, data: bytes) -> str:
        """Return the text of the next bytes; the beginning of something unfinished is held back."""
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        if not _SUSPECT.search(text):
            return text
        unfinished = _UNFINISHED.search(text)
        if unfinished and len(unfinished[0]) <= _UNFINISHED_LIMIT:
            self._rest = unfinished[0]
            text = text[: unfinished.start()]
        return self._clean(text)

    def finish(self) -> str:
        """Return what was held back."""
        text = self._rest + self._decoder.decode(b"", final=True)
        self._rest = ""
        return self._clean(text)

    def _clean(self, text: str) -> str:
        if "\r" in text:
            text = _LINE_END.sub("\n", text)
        if not self._is_terminal:
            return _ALL.sub("", text.replace("\r", "\n"))
        if not self.may_move:
            return _BUT_PAINT.sub(r"\1", text)
        self.has_moved = self.has_moved or _MOVE.search(text) is not None
        return _BUT_PAINT_AND_MOVE.sub(r"\1", text)
