"use strict";
const report = JSON.parse(document.getElementById("report").textContent);
const MOST_ROWS = 2000; // of a table on the page; more would freeze it
const PRINTED_ROWS = 200; // of a table that is closed on the screen
const MANY_POINTS = 5000; // of a chart; canvas draws more than these faster
const dark = matchMedia("screen and (prefers-color-scheme: dark)");

/** An element with some properties and children; text is never markup. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ---- Tables ----

const valueOf = (cell) => (Array.isArray(cell) ? cell[0] : cell);

function textOf(cell, column) {
  if (cell === null) return "\u2013";
  if (Array.isArray(cell)) return cell[1];
  if (typeof cell !== "number") return cell;
  const digits = column.digits ?? 0;
  return cell.toLocaleString("en", {
    minimumFractionDigits: digits, maximumFractionDigits: digits,
  });
}

/** The rows by a column: numbers, then text; those without a value are last. */
function sorted(rows, index, sign) {
  const words = new Intl.Collator("en", {numeric: true});
  return rows.toSorted((first, second) => {
    const [a, b] = [first, second].map((row) => valueOf(row[index]));
    if (a === null || b === null) return (a === null) - (b === null);
    const numbers = [a, b].map((value) => typeof value === "number");
    if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
    return sign * (numbers[0] ? a - b : words.compare(a, b));
  });
}

/** A table as a CSV file, with all digits of its numbers. */
function csvOf({columns, rows}) {
  const spreads = columns.map((_, i) => rows.some((row) => row[i]?.[2] > 0
    && Array.isArray(row[i])));
  const quoted = (value) => {
    if (typeof value === "number") return String(value);
    let text = value ?? "";
    // A spreadsheet runs a cell with such a beginning as a formula.
    if (/^'*[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const heads = columns.flatMap(({title, file_unit}, i) => {
    const name = nameOf(title, file_unit);
    return spreads[i] ? [name, `${name}, half range`] : [name];
  });
  const lines = rows.map((row) => row.flatMap((cell, i) =>
    spreads[i] ? [valueOf(cell), cell?.[2] ?? null] : [valueOf(cell)]));
  return [heads, ...lines]
    .map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  element("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function rowOf(table, row) {
  const best = table.best?.includes(table.rows.indexOf(row));
  const cells = row.map((cell, i) => {
    const made = element(i ? "td" : "th", {}, textOf(cell, table.columns[i]));
    if (i && table.columns[i].numbers) made.className = "number";
    if (!i) made.scope = "row";
    if (!i && best) {
      made.append(" ", element(
        "span", {className: "star"}, `\u2605 best ${table.by}`));
    }
    return made;
  });
  return element("tr", {className: best ? "best" : ""}, ...cells);
}

const nameOf = (title, unit) => (unit ? `${title} (${unit})` : title);

/** A table of a single row as pairs of names and values. */
function pairsOf(table) {
  const rows = table.columns.map(({title, unit}, i) =>
    [nameOf(title, unit), table.rows[0][i]]);
  return {...table, rows, columns: [{title: "name"}, {title: "value"}]};
}

function fillTable(box) {
  const whole = report.tables[box.dataset.table];
  const inPairs = whole.rows.length === 1;
  const table = inPairs ? pairsOf(whole) : whole;
  const body = element("tbody");
  const show = (rows) => body.replaceChildren(
    ...rows.slice(0, MOST_ROWS).map((row) => rowOf(table, row)));
  const heads = table.columns.map((column, index) => {
    const {title, unit} = column;
    column.numbers = !inPairs && table.rows.every((row) =>
      ["number", "object"].includes(typeof valueOf(row[index])));
    const button = element("button", {type: "button"}, nameOf(title, unit));
    const head = element("th", {scope: "col", ariaSort: "none"}, button);
    if (column.numbers) head.className = "number";
    button.onclick = () => {
      const up = head.ariaSort !== "ascending";
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = up ? "ascending" : "descending";
      show(sorted(table.rows, index, up ? 1 : -1));
    };
    return head;
  });
  show(table.rows);
  const save = element("button", {type: "button"}, "CSV");
  save.ariaLabel = `Save the table as CSV: ${table.title}`;
  const name = table.title.replace(/[^\w]+/g, "-").slice(0, 60);
  save.onclick = () => download(`${name}.csv`, csvOf(whole));
  const top = element("div", {className: "head"}, save);
  if (!table.closed && table.title !== table.section) {
    top.prepend(element("h3", {}, table.title));
  }
  if (table.rows.length > MOST_ROWS) {
    top.prepend(element("span", {className: "soft"},
      `The first ${MOST_ROWS.toLocaleString("en")} of `
      + `${table.rows.length.toLocaleString("en")} rows are shown. `
      + "The CSV file has all of them."));
  }
  const scroll = element("div", {className: "scroll", role: "region",
    tabIndex: 0, ariaLabel: table.title}, element("table", {},
    element("thead", {}, element("tr", {}, ...heads)), body));
  box.replaceChildren(top, scroll);
}

function fillOnce(box) {
  if (!box.hasChildNodes()) fillTable(box);
}

for (const box of document.querySelectorAll("[data-table]")) {
  const closed = box.closest("details");
  // What is closed is made when the reader opens it.
  if (closed) {
    closed.addEventListener("toggle", () => fillOnce(box));
  } else {
    fillTable(box);
  }
}

// ---- Charts ----

const axis = document.getElementById("axis");
const logSwitch = document.getElementById("log-x");
const hidden = new Set(); // styles of lines
const drawn = new Map(); // by the chart's number, what vegaEmbed gave

const color = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The page's colours for Vega. */
function theme() {
  const text = {labelColor: color("--soft"), titleColor: color("--soft"),
    titleFontWeight: "normal", titleFontSize: 12, labelFontSize: 11,
    gridColor: color("--grid"), domainColor: color("--line"),
    tickColor: color("--line")};
  return {
    background: color("--card"), font: "system-ui, sans-serif", axis: text,
    view: {stroke: null}, rule: {color: color("--soft")},
    range: {category: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => color(`--c${i}`))},
  };
}

/** The points of a chart's lines as rows. */
function pointsOf(chart, axis, logX, logY) {
  return chart.lines.flatMap(({style, stopped, points}) => {
    const [x, y, low, high] = points[axis] ?? [[]];
    const rows = x.map((value, i) => (
      {line: style, x: value, y: y[i], low: low?.[i], high: high?.[i]}
    )).filter((row) => (!logX || row.x > 0)
      && (!logY || Math.min(row.y, row.low ?? row.y) > 0));
    if (stopped && rows.length) rows.at(-1).open = true;
    else if (rows.length === 1) rows[0].dot = true;
    return rows;
  });
}

/** What a point says; Vega shows it as a table and escapes its text. */
function wordsOf(chart, xTitle, {line, x, y, low, high}) {
  const short = (value) =>
    value.toLocaleString("en", {maximumSignificantDigits: 6});
  const words = {
    title: report.lines[line].name, [xTitle]: short(x), [chart.title]: short(y),
  };
  if (low !== undefined) words[chart.band] = `${short(low)} to ${short(high)}`;
  return words;
}

/** Gives an axis a logarithmic scale with lines at 1, 2, 5, 10, 20 and so on. */
function makeLog(channel, nice) {
  const power = "pow(10, floor(log(datum.value) / LN10 + 1e-9))";
  const test = `indexof([1, 2, 5], round(datum.value / ${power})) >= 0`;
  const {axis} = channel;
  channel.scale = {type: "log", nice};
  axis.gridOpacity = axis.tickOpacity = {condition: {test, value: 1}, value: 0};
  axis.labelExpr = `${test} ? format(datum.value, "${axis.format}") : ""`;
}

async function draw(box) {
  const number = box.dataset.chart;
  const chart = report.charts[number];
  const spec = structuredClone(report.specification);
  const steps = chart.x_title !== null;
  const by = steps ? "own" : axis.value;
  const xTitle = chart.x_title ?? report.axes[by];
  const logX = logSwitch.checked && !steps;
  const logY = document.querySelector(`[data-log="${number}"]`)?.checked;
  for (const {name, mark, encoding: {x, y}} of spec.layer) {
    Object.assign(x, {title: xTitle, scale: {nice: false, zero: true}});
    x.axis.format = by === "bytes" ? "~s" : ",~r";
    if (logX) makeLog(x, false);
    if (y) {
      Object.assign(y, {title: chart.y_title, scale: {...chart.y_scale}});
      y.axis.format = chart.y_title === "k" ? "~s" : "~g";
      if (logY) makeLog(y, chart.log);
    }
    if (name === "lines" && steps) mark.interpolate = "step-after";
  }
  spec.description = chart.words;
  spec.params.find(({name}) => name === "hidden").value = [...hidden];
  const points = pointsOf(chart, by, logX, logY);
  const at = report.moment;
  spec.datasets = {
    points, moment: at?.against === by ? [{x: at.value}] : [],
  };
  drawn.get(number)?.finalize();
  const made = await vegaEmbed(box, spec, {
    mode: "vega-lite", ast: true, logLevel: 1, config: theme(),
    renderer: points.length > MANY_POINTS ? "canvas" : "svg",
    actions: {export: true, source: false, compiled: false, editor: false},
    downloadFileName: chart.title,
    tooltip: {theme: dark.matches ? "dark" : "light"},
  });
  const {view} = made;
  const show = view.tooltip();
  await view.tooltip((handler, event, item, value) => show(handler, event, item,
    value && wordsOf(chart, xTitle, item.datum.datum ?? item.datum))).runAsync();
  drawn.set(number, made);
}

const boxes = [...document.querySelectorAll("[data-chart]")];
const drawAll = () => Promise.all(boxes.map(draw));

/** Shows the lines that are not hidden, in the charts and in the legend. */
function showLines() {
  buttons.forEach((button, style) => {
    button.ariaPressed = String(!hidden.has(style));
  });
  for (const {view} of drawn.values()) {
    view.signal("hidden", [...hidden]).runAsync();
  }
}

/** Hides all lines but one; if it is alone already, shows all. */
function isolate(style) {
  const others = report.lines.map((_, i) => i).filter((i) => i !== style);
  const alone = !hidden.has(style) && others.every((i) => hidden.has(i));
  hidden.clear();
  if (!alone) for (const i of others) hidden.add(i);
  showLines();
}

const buttons = report.lines.map(({name, dash}, style) => {
  const sample = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  sample.innerHTML = '<line x1="0" x2="30" y1="5" y2="5"/>';
  sample.firstChild.style.stroke = `var(--c${style % 8})`;
  sample.firstChild.style.strokeDasharray = dash[1] ? dash.join(" ") : "";
  sample.ariaHidden = "true";
  const button = element(
    "button", {type: "button"}, sample, element("span", {}, name));
  button.onclick = (event) => {
    if (event.shiftKey) return isolate(style);
    if (!hidden.delete(style)) hidden.add(style);
    showLines();
  };
  button.ondblclick = () => isolate(style);
  return button;
});
document.getElementById("legend").append(
  ...buttons.map((button) => element("li", {}, button)));
document.getElementById("all").onclick = () => {
  hidden.clear();
  showLines();
};
axis.onchange = () => {
  logSwitch.checked = report.log_x[axis.value];
  drawAll();
};
logSwitch.checked = report.log_x[axis.value];
logSwitch.onchange = drawAll;
dark.onchange = drawAll;
for (const box of document.querySelectorAll("[data-log]")) {
  box.onchange = () => draw(document.querySelector(
    `[data-chart="${box.dataset.log}"]`));
}

// The wheel scrolls the page, and zooms a chart only if the reader means it.
let chosen = null;
for (const box of boxes) {
  box.addEventListener("pointerdown", () => { chosen = box; });
  box.addEventListener("pointerleave", () => { chosen = null; });
  box.addEventListener("wheel", (event) => {
    if (chosen !== box && !event.ctrlKey && !event.metaKey) {
      event.stopPropagation();
    }
  }, {capture: true, passive: true});
}

// On paper everything is open, but for very long tables.
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("main details")) {
    const box = closed.querySelector("[data-table]");
    const rows = box ? report.tables[box.dataset.table].rows.length : 0;
    if (closed.closest(".chart") || rows > PRINTED_ROWS) continue;
    if (box) fillOnce(box);
    closed.open = true;
  }
});
showLines();
drawAll();
