"""Charts as inline SVG that takes its colours from the page's style sheet."""

import math
from typing import NamedTuple

import numpy as np

from experiments.report.markup import escape

COLORS, DASHES = 8, 4
_WIDTH, _HEIGHT = 360, 246
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 24, 40
_POINTS = 300
_FINE_FROM = 150  # points; with more a line is thin
_CHARACTER = 6.6  # about its width
_MOST_IN_WORDS = 8  # lines in the alternative text

STYLE = """
.chart { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { font-size: 12px; fill: var(--soft); }
.chart .frame { stroke: var(--line); fill: none; }
.chart .grid { stroke: var(--grid); fill: none; }
.mark { stroke-width: 1.8; fill: none; stroke-linejoin: round; }
.band { stroke: none; opacity: .18; }
.end { fill: var(--card); stroke-width: 1.8; }
.dot { stroke: none; }
.fine { stroke-width: 1; }
.d1 { stroke-dasharray: 7 3; }
.d2 { stroke-dasharray: 2 2.5; }
.d3 { stroke-dasharray: 9 3 2 3; }
""" + "".join(
    f".c{i} {{ stroke: var(--c{i}); }} .f{i} {{ fill: var(--c{i}); }}\n"
    for i in range(COLORS)
)


class Line(NamedTuple):
  """One line of a chart.

  Attributes:
    label: for the legend.
    style: its number; the same number looks the same in every chart.
    x, y: [points] each, finite.
    low, high: (x, y) each, the edges of a band around it, or None.
    stopped: whether an open circle marks its end.
  """

  label: str
  style: int
  x: np.ndarray
  y: np.ndarray
  low: tuple[np.ndarray, np.ndarray] | None = None
  high: tuple[np.ndarray, np.ndarray] | None = None
  stopped: bool = False


def steps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The share of values at or below x, as a line of steps."""
  x = np.sort(values)
  share = np.arange(len(x) + 1) / len(x)
  return np.repeat(x, 2), np.repeat(share, 2)[1:-1]


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Keeps the least and the greatest of each stretch of a long line."""
  if len(x) <= 2 * _POINTS:
    return x, y
  shown = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), _POINTS):
    shown |= {int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])}
  shown = sorted(shown)
  return x[shown], y[shown]


def number(value: float) -> str:
  """A short number for an axis.

  >>> number(0.25), number(20000.0), number(1.5e9)
  ('0.25', '20k', '1.5G')
  """
  for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= scale:
      return f"{value / scale:.5g}{suffix}"
  return f"{value:.5g}"


def _round_steps(low, high):
  """Four to about eight multiples of 1, 2 or 5 times a power of ten."""
  power = 10.0 ** math.floor(math.log10(high - low))
  for step in (power * m for m in (5, 2, 1, 0.5, 0.2, 0.1)):
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    if last - first >= 3:
      break
  return [i * step for i in range(first, last + 1)]


def _log_steps(low, high):
  """Powers of ten, or finer where there are few."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for digits in ((1,), (1, 3), (1, 2, 5)):
    ticks = [d * 10.0**p for p in powers for d in digits]
    ticks = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
    if len(ticks) >= 3:
      return ticks[:: -(-len(ticks) // 7)]
  return _round_steps(low, high)


class _Axis:
  """Turns values into places on the page."""

  def __init__(self, values, start, end, *, log, zero=False, wide=0.04):
    low, high = float(np.min(values)), float(np.max(values))
    if zero:
      low = min(low, 0.0)
    self.log = log and low > 0
    if low == high:
      low, high = (
          (low / 1.5, high * 1.5)
          if self.log
          else (low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5))
      )
    elif self.log:
      more = (high / low) ** wide
      low, high = low / more, high * more
    else:
      more = wide * (high - low)
      low, high = low - (0 if zero and low == 0 else more), high + more
    self._low, self._high = self._scaled(low), self._scaled(high)
    self._start, self._end = start, end
    self.ticks = (
        _log_steps(low, high) if self.log else _round_steps(low, high)
    )

  def _scaled(self, values):
    return np.log(values) if self.log else values

  def at(self, values):
    share = (self._scaled(values) - self._low) / (self._high - self._low)
    return self._start + share * (self._end - self._start)


def _points(axes, x, y):
  x_axis, y_axis = axes
  places = zip(
      np.atleast_1d(x_axis.at(x)), np.atleast_1d(y_axis.at(y)), strict=True
  )
  return [f"{a:.1f} {b:.1f}" for a, b in places]


def _path(axes, x, y):
  return "M" + "L".join(_points(axes, *thin(x, y)))


def look(style: int) -> str:
  """The classes of a line's stroke."""
  return f"c{style % COLORS} d{(style + style // COLORS) % DASHES}"


def _drawn(axes, line):
  """A line's marks."""
  color = line.style % COLORS
  parts = [f"<g><title>{escape(line.label)}</title>"]
  if line.low is not None:
    there = _path(axes, *line.low)
    back = _points(axes, *(v[::-1] for v in thin(*line.high)))
    parts.append(f'<path class="band f{color}" d="{there}L{"L".join(back)}Z"/>')
  if len(line.x) > 1:
    path = _path(axes, line.x, line.y)
    fine = " fine" if len(line.x) > _FINE_FROM else ""
    kind = f"mark{fine} {look(line.style)}"
    parts.append(f'<path class="{kind}" d="{path}"/>')
  x, y = _points(axes, line.x[-1], line.y[-1])[0].split()
  if line.stopped:
    parts.append(f'<circle class="end c{color}" cx="{x}" cy="{y}" r="3.5"/>')
  elif len(line.x) == 1:
    parts.append(f'<circle class="dot f{color}" cx="{x}" cy="{y}" r="3"/>')
  return "".join(parts) + "</g>"


def _x_ticks(axis):
  parts, taken = [], -math.inf
  bottom = _HEIGHT - _BOTTOM
  for tick in axis.ticks:
    place, text = float(axis.at(tick)), number(tick)
    parts.append(f'<path class="grid" d="M{place:.1f} {_TOP}V{bottom}"/>')
    half = len(text) * _CHARACTER / 2
    if place - half > taken + 4 and place + half < _WIDTH + 4:
      taken = place + half
      parts.append(
          f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">'
          f"{text}</text>"
      )
  return "".join(parts)


def _y_ticks(axis):
  parts, taken = [], math.inf
  for tick in axis.ticks:
    place = float(axis.at(tick))
    parts.append(
        f'<path class="grid" d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"/>'
    )
    if place < taken - 13:
      taken = place
      parts.append(
          f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">'
          f"{number(tick)}</text>"
      )
  return "".join(parts)


def _in_words(lines, *, steps):
  """What the lines show, in words."""
  if steps:
    words_of = lambda line: (
        f"{line.label}: from {line.x[0]:.4g} to {line.x[-1]:.4g}"
    )
  else:
    words_of = lambda line: (
        f"{line.label}: from {line.y[0]:.4g} at {line.x[0]:.4g} to "
        f"{line.y[-1]:.4g} at {line.x[-1]:.4g}"
    )
  words = [words_of(line) for line in lines[:_MOST_IN_WORDS]]
  if len(lines) > _MOST_IN_WORDS:
    words.append(f"and {len(lines) - _MOST_IN_WORDS} more lines")
  return "; ".join(words)


def chart(
    lines: list[Line],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    zero_x: bool = False,
    steps: bool = False,
) -> str:
  """An SVG element.

  Args:
    lines: one or more, of one or more points.
    title: for screen readers; the values follow it.
    xlabel, ylabel: of the axes.
    log_x, log_y: logarithmic where all values are positive.
    zero_x: whether x begins at 0.
    steps: whether the lines come from the function `steps`.

  Returns:
    Markup; all text is escaped.
  """
  edges = [
      edge for line in lines for edge in (line.low, line.high)
      if edge is not None
  ]
  every = [*((line.x, line.y) for line in lines), *edges]
  x_axis = _Axis(
      np.concatenate([x for x, _ in every]),
      _LEFT,
      _WIDTH - _RIGHT,
      log=log_x,
      zero=zero_x,
  )
  y_axis = _Axis(
      np.concatenate([y for _, y in every]), _HEIGHT - _BOTTOM, _TOP, log=log_y
  )
  log_notes = [", log scale" if axis.log else "" for axis in (x_axis, y_axis)]
  alt = escape(f"{title}. {_in_words(lines, steps=steps)}.")
  middle = (_LEFT + _WIDTH - _RIGHT) / 2
  return "".join([
      f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
      f'aria-label="{alt}">',
      _x_ticks(x_axis),
      _y_ticks(y_axis),
      f'<path class="frame" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}'
      f'H{_WIDTH - _RIGHT}"/>',
      f'<text x="2" y="13">{escape(ylabel + log_notes[1])}</text>',
      f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">'
      f"{escape(xlabel + log_notes[0])}</text>",
      *(_drawn((x_axis, y_axis), line) for line in reversed(lines)),
      "</svg>",
  ])


def legend(lines: list[Line]) -> str:
  """A list of what each line is, beside a piece of it."""
  items = [
      f'<li><svg viewBox="0 0 30 10" aria-hidden="true">'
      f'<path class="mark {look(line.style)}" d="M1 5H29"/></svg>'
      f"<span>{escape(line.label)}</span></li>"
      for line in lines
  ]
  return f'<ul class="legend">{"".join(items)}</ul>'
