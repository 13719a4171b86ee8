"""Draw trips per day for a markdown artifact: SVG in a data URI. Prefect's UI renders no other kind of drawing."""

import base64
import datetime as dt
from collections.abc import Mapping
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 720, 220, 56, 34, 22


def trips_per_day(title: str, days: Mapping[dt.date, int], before: Mapping[dt.date, int]) -> str:
    """Return an image as Markdown: one bar per day of a month, and a line for the days of the month before, if known."""
    top = max([1, *days.values(), *before.values()])
    step = (_WIDTH - _LEFT) / 31
    height = _HEIGHT - _TOP - _BOTTOM

    def y(count: int) -> float:
        return _TOP + height * (1 - count / top)

    def middle(day: dt.date) -> float:
        return _LEFT + step * (day.day - 0.5)

    drawn = [
        f'<rect x="{_LEFT + step * (day.day - 1) + 2:.1f}" y="{y(n):.1f}" width="{step - 4:.1f}"'
        f' height="{height * n / top:.1f}" fill="{"#93b5e1" if day.weekday() < 5 else "#4a7ebb"}"/>'
        for day, n in days.items()
    ]
    if before:
        points = " ".join(f"{middle(day):.1f},{y(n):.1f}" for day, n in sorted(before.items()))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="#e8833a" stroke-width="2"/>')
    for count in (0, top // 2, top):
        drawn.append(f'<text x="{_LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,}</text>')
    for number in (1, 5, 10, 15, 20, 25, 30):
        drawn.append(
            f'<text x="{_LEFT + step * (number - 0.5):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{number}</text>'
        )
    legend = escape(title) + (" · line: the month before" if before else "") + " · dark: weekends"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
        ' font-family="sans-serif" font-size="11" fill="#555">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<text x="{_LEFT}" y="16" font-size="13">{legend}</text>{"".join(drawn)}</svg>'
    )
    return f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
