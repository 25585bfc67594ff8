"""One chart as SVG, written by hand: the same numbers give the same bytes, light and dark are the reader's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 34, 30
_HOURS = 24

Points = Sequence[tuple[float, float]]

_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">
<style>
  text {{ font: 12px system-ui, sans-serif; fill: #57606a }}
  .grid {{ stroke: #d0d7de; stroke-width: 1 }}
  .needed {{ fill: #54aeff; fill-opacity: .35 }}
  .accepting {{ fill: none; stroke: #0550ae; stroke-width: 1.6 }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #9198a1 }}
    .grid {{ stroke: #3d444d }}
    .accepting {{ stroke: #79c0ff }}
  }}
</style>"""


def write(path: Path, *, title: str, needed: Points, accepting: Points) -> None:
    """Draw servers over a day: those needed as an area, those that accept builds as a line.

    Args:
        needed, accepting: (hour of the day, servers), in order.
    """
    top = _round_up(max(value for _, value in [*needed, *accepting]))
    lines = [_HEAD.format(width=_WIDTH, height=_HEIGHT, title=title), *_grid(top)]
    area = [(needed[0][0], 0.0), *needed, (needed[-1][0], 0.0)]
    lines.append(f'<polygon class="needed" points="{_path(area, top)}"/>')
    lines.append(f'<polyline class="accepting" points="{_path(accepting, top)}"/>')
    lines += [*_legend(), "</svg>", ""]
    path.write_text("\n".join(lines))


def _grid(top: float) -> list[str]:
    lines = []
    for part in range(5):
        value = top * part / 4
        y = _y(value, top)
        lines.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{value:,.0f}</text>')
    for hour in range(0, _HOURS + 1, 3):
        anchor = "end" if hour == _HOURS else "middle"
        lines.append(f'<text x="{_x(hour)}" y="{_HEIGHT - 10}" text-anchor="{anchor}">{hour:02}:00</text>')
    return lines


def _legend() -> list[str]:
    return [
        f'<rect class="needed" x="{_LEFT}" y="10" width="14" height="10"/>',
        f'<text x="{_LEFT + 20}" y="19">servers that the builds need</text>',
        f'<line class="accepting" x1="{_LEFT + 220}" y1="15" x2="{_LEFT + 236}" y2="15"/>',
        f'<text x="{_LEFT + 242}" y="19">servers that accept builds</text>',
    ]


def _path(points: Points, top: float) -> str:
    return " ".join(f"{_x(hour)},{_y(value, top)}" for hour, value in points)


def _x(hour: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * hour / _HOURS, 1)


def _y(value: float, top: float) -> float:
    return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top, 1)


def _round_up(value: float) -> float:
    """Return a round number that is no less, and that four parts divide."""
    unit = 10.0 ** math.floor(math.log10(max(value, 4.0)))
    return unit * next(it for it in (1, 2, 4, 8, 10) if it * unit >= value)
