"""The pieces of a report's page: its style, text, tables."""

import html
from typing import Any

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1b1f24; --soft: #56606b;
  --line: #aab2bc; --grid: #e6e9ed; --link: #0b5cad;
  --shade: #0003;
  --c0: #0b62a8; --c1: #c2410c; --c2: #007a5c; --c3: #a3297f;
  --c4: #7d6000; --c5: #5b46b8; --c6: #0e7f95; --c7: #5f6b78;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111418; --card: #1a1e24; --text: #e7eaee; --soft: #a5afba;
    --line: #5a6571; --grid: #2b313a; --link: #7db8f5;
    --shade: #000c;
    --c0: #6cb4f5; --c1: #ff9a5c; --c2: #4fd1a5; --c3: #f08fd0;
    --c4: #e6c34a; --c5: #b3a5ff; --c6: #5fd4e6; --c7: #b8c0cc;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
main { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft { color: var(--soft); font-size: .92rem; }
.scroll {
  overflow-x: auto; border: 1px solid var(--grid);
  /* A shadow at each end that has more behind it. */
  background:
    linear-gradient(90deg, var(--card) 40%, transparent) 0 0 / 2.5rem 100%
      local,
    linear-gradient(270deg, var(--card) 40%, transparent) 100% 0 / 2.5rem 100%
      local,
    linear-gradient(90deg, var(--shade), transparent) 0 0 / .9rem 100%,
    linear-gradient(270deg, var(--shade), transparent) 100% 0 / .9rem 100%,
    var(--card);
  background-repeat: no-repeat;
  border-radius: .5rem; margin: .6rem 0; width: fit-content; max-width: 100%;
}
table {
  border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums;
}
th, td {
  padding: .35rem .6rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--grid); vertical-align: top;
}
thead th { border-top: 0; color: var(--soft); font-weight: 600;
  vertical-align: bottom; white-space: normal; }
tbody th, th:first-child, .words th { text-align: left; font-weight: 600; }
.names tbody th {
  white-space: normal; overflow-wrap: anywhere; min-width: 11.5rem;
  max-width: 18rem;
}
.pairs td { white-space: normal; }
.words td {
  text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 7.5rem; max-width: 34rem;
}
.stopped { font-weight: 400; color: var(--c1); display: block; }
details { margin: .6rem 0; }
summary { cursor: pointer; padding: .4rem 0; color: var(--link); }
.beside { display: grid; gap: 0 2rem; }
.beside > * { min-width: 0; }
@media (min-width: 50rem) {
  .beside { grid-template-columns: repeat(2, 1fr); }
}
.charts {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
}
.charts + .charts { margin-top: 1rem; }
figure {
  margin: 0; padding: .9rem; background: var(--card);
  border: 1px solid var(--grid); border-radius: .5rem; min-width: 0;
}
figcaption { color: var(--soft); font-size: .85rem; margin-top: .3rem; }
.legend {
  list-style: none; margin: .5rem 0 0; padding: 0; font-size: .85rem;
  display: flex; flex-wrap: wrap; gap: .15rem .9rem;
}
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend svg { width: 30px; height: 10px; flex: none; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print { body { background: none; } figure { break-inside: avoid; } }
"""


def escape(value: Any) -> str:
  """Escapes text for the page; a mark replaces what cannot be printed."""
  text = str(value)
  shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
  return html.escape(shown)


def data(value: float, text: str) -> str:
  """Markup of a number: its full value, and the text that is shown."""
  return f'<data value="{value!r}">{escape(text)}</data>'


def table(
    what: str,
    header: list[str] | None,
    lines: list[list[str]],
    kind: str = "",
) -> str:
  """A table in a box of its own that scrolls.

  Args:
    what: what the table shows, for screen readers.
    header: markup of the columns' heads; None for none.
    lines: markup of the cells of each line; the first is the line's head.
    kind: classes: "words" for cells of words, "names" for long first cells,
      "pairs" for a name and a value.
  """
  head = ""
  if header:
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    head = f"<thead><tr>{cells}</tr></thead>"
  rows = "".join(
      f'<tr><th scope="row">{first}</th>'
      + "".join(f"<td>{cell}</td>" for cell in others)
      + "</tr>\n"
      for first, *others in lines
  )
  return (
      f'<div class="scroll" role="region" aria-label="{escape(what)}" '
      f'tabindex="0"><table class="{kind}">{head}<tbody>\n{rows}</tbody>'
      "</table></div>\n"
  )


def details(summary: str, body: str, *, is_open: bool = False) -> str:
  """Markup that the reader can open below its summary."""
  state = " open" if is_open else ""
  return f"<details{state}><summary>{summary}</summary>\n{body}</details>\n"
