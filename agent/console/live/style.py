"""How a character looks: what SGR sequences say of colours and weight, as names of CSS classes.

The page's policy forbids styles in the markup, so a colour has to be one of 256 that a style sheet holds.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

_BOLD, _DIM, _ITALIC, _UNDERLINE, _BLINK, _INVERSE, _STRIKE, _OVERLINE = (1 << n for n in range(8))
_SET = {1: _BOLD, 2: _DIM, 3: _ITALIC, 4: _UNDERLINE, 5: _BLINK, 6: _BLINK, 7: _INVERSE, 9: _STRIKE}
_SET |= {21: _UNDERLINE, 53: _OVERLINE}
_UNSET = {22: _BOLD | _DIM, 23: _ITALIC, 24: _UNDERLINE, 25: _BLINK, 27: _INVERSE, 29: _STRIKE, 55: _OVERLINE}
# Blinking text is shown as it is: it would distract from everything else on the page.
_CLASSES = {_BOLD: "b", _DIM: "d", _ITALIC: "i", _UNDERLINE: "u", _STRIKE: "s", _OVERLINE: "o"}
# xterm's cube of 6 x 6 x 6 colours begins at 16, its 24 greys at 232.
_CUBE = (0, 95, 135, 175, 215, 255)
_NO_COLOUR = -1


class Style(NamedTuple):
    """Colours from 0 to 255, -1 for the page's own; flags; the address a hyperlink leads to."""

    colour: int = _NO_COLOUR
    ground: int = _NO_COLOUR
    flags: int = 0
    link: str | None = None


PLAIN = Style()


def apply(style: Style, parameters: str) -> Style:
    """Return what a style is after an SGR sequence, given between `CSI` and `m`.

    Source: ECMA-48 8.3.117; ISO 8613-6 for 38 and 48, whose parts are divided by colons or, as xterm does, by
        semicolons.
    """
    codes = parameters.split(";")
    at = 0
    while at < len(codes):
        parts = codes[at].split(":")
        at += 1
        code = _number(parts[0])
        if code in (38, 48, 58):
            if len(parts) == 1:
                length = {5: 2, 2: 4}.get(_number(codes[at]) if at < len(codes) else 0, 1)
                parts, at = [parts[0], *codes[at : at + length]], at + length
            style = _coloured(style, code, parts[1:])
        elif code == 4 and parts[1:] == ["0"]:
            style = style._replace(flags=style.flags & ~_UNDERLINE)
        else:
            style = _simple(style, code)
    return style


@functools.lru_cache(maxsize=4096)
def classes(style: Style) -> str:
    """Return the CSS classes of a style, divided by spaces."""
    colour, ground = style.colour, style.ground
    names = [name for flag, name in _CLASSES.items() if style.flags & flag]
    if style.flags & _INVERSE:
        names.append(f"f{ground}" if ground >= 0 else "fx")
        names.append(f"g{colour}" if colour >= 0 else "gx")
    else:
        names += [f"f{colour}"] if colour >= 0 else []
        names += [f"g{ground}"] if ground >= 0 else []
    return " ".join(names)


@functools.lru_cache(maxsize=4096)
def nearest(red: int, green: int, blue: int) -> int:
    """Return the colour from 16 to 255 that lies nearest to a colour of 3 x 8 bits."""
    wanted = (red, green, blue)
    levels = [min(range(6), key=lambda it, part=part: abs(_CUBE[it] - part)) for part in wanted]  # type: ignore[misc]
    cube = 16 + 36 * levels[0] + 6 * levels[1] + levels[2]
    grey = 232 + max(0, min(23, round((sum(wanted) / 3 - 8) / 10)))
    return min((cube, grey), key=lambda it: sum((a - b) ** 2 for a, b in zip(rgb(it), wanted, strict=True)))


def rgb(colour: int) -> tuple[int, int, int]:
    """Return the parts of a colour from 16 to 255."""
    if colour >= 232:
        level = 8 + 10 * (colour - 232)
        return level, level, level
    index = colour - 16
    return _CUBE[index // 36], _CUBE[index // 6 % 6], _CUBE[index % 6]


def sheet() -> str:
    """Return the style sheet of the colours that no theme changes: 16 to 255, as letters and as ground."""
    lines = ["/* Made by agent.console.live.style.sheet(); a test holds the two equal. */"]
    for colour in range(16, 256):
        code = "#{:02x}{:02x}{:02x}".format(*rgb(colour))
        lines.append(f".f{colour}{{color:{code}}}.g{colour}{{background:{code}}}")
    return "\n".join(lines) + "\n"


def _simple(style: Style, code: int) -> Style:
    if code == 0:
        return PLAIN._replace(link=style.link)
    flags = (style.flags | _SET.get(code, 0)) & ~_UNSET.get(code, 0)
    decade, unit = divmod(code, 10)
    if decade in (3, 9) and (unit <= 7 or code == 39):
        style = style._replace(colour=_NO_COLOUR if code == 39 else unit + 8 * (decade == 9))
    elif decade in (4, 10) and (unit <= 7 or code == 49):
        style = style._replace(ground=_NO_COLOUR if code == 49 else unit + 8 * (decade == 10))
    return style._replace(flags=flags)


def _coloured(style: Style, code: int, parts: list[str]) -> Style:
    """Set a colour given as `5, n` or `2, r, g, b`; with colons there may be a colour space before `r`."""
    numbers = [_number(part) for part in parts]
    colour = None
    if numbers[:1] == [5] and len(numbers) == 2:
        colour = numbers[1]
    elif numbers[:1] == [2] and len(numbers) >= 4:
        red, green, blue = numbers[2:5] if len(numbers) >= 5 else numbers[1:4]
        if max(red, green, blue) <= 255:
            colour = nearest(red, green, blue)
    if colour is None or colour > 255 or code == 58:
        return style
    return style._replace(colour=colour) if code == 38 else style._replace(ground=colour)


def _number(text: str) -> int:
    """Return a parameter's number: 0 when left out, too great for anything when it is no number."""
    if not text:
        return 0
    return int(text) if len(text) <= 5 and text.isdecimal() and text.isascii() else 99_999
