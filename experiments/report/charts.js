// Charts: one legend, one x axis, and the page's colours for all of them.
const MANY_POINTS = 5000; // of a chart; canvas draws more than these faster
const PNG_SCALE = 3; // so that a saved picture is sharp in print
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
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
    title: {color: color("--text")},
    legend: {labelColor: color("--text"), labelFontSize: 12},
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

/** Gives an axis a logarithmic scale, with lines at 1, 2, 5, 10 and so on. */
function makeLog(channel, nice) {
  const power = "pow(10, floor(log(datum.value) / LN10 + 1e-9))";
  const test = `indexof([1, 2, 5], round(datum.value / ${power})) >= 0`;
  const {axis} = channel;
  channel.scale = {type: "log", nice};
  axis.gridOpacity = axis.tickOpacity = {condition: {test, value: 1}, value: 0};
  axis.labelExpr = `${test} ? format(datum.value, "${axis.format}") : ""`;
}

/** What all calls of vegaEmbed have in common. */
const how = () =>
  ({mode: "vega-lite", ast: true, logLevel: 1, config: theme()});

/** The address of a picture: what a chart shows, its title and a legend. */
async function picture(chart, spec, view, kind) {
  const copy = structuredClone(spec);
  Object.assign(copy, {title: chart.title, width: 480});
  copy.params.push(
    {name: "names", value: report.lines.map(({name}) => name)});
  const styles = new Set(chart.lines.map(({style}) => style));
  const legend = {
    title: null, orient: "bottom", columns: 1, labelLimit: 0,
    values: [...styles].filter((style) => !hidden.has(style)),
    labelExpr: "names[datum.value]", symbolType: "stroke", symbolSize: 900,
    symbolOpacity: 1, symbolStrokeWidth: 2, rowPadding: -10,
  };
  for (const {encoding} of copy.layer) {
    for (const name of ["color", "strokeDash"]) {
      if (encoding[name]) Object.assign(encoding[name], {legend});
    }
    // The reader may have zoomed.
    for (const name of ["x", "y"].filter((name) => encoding[name])) {
      encoding[name].scale.domain = view.scale(name).domain();
    }
  }
  const made = await vegaEmbed(
    element("div"), copy, {...how(), actions: false});
  await made.view.signal("hidden", [...hidden]).runAsync();
  const url = await made.view.toImageURL(kind, kind === "png" ? PNG_SCALE : 1);
  made.finalize();
  return url;
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
  const points = pointsOf(chart, by, logX, logY);
  const at = report.moment;
  spec.datasets = {
    points, moment: at?.against === by ? [{x: at.value}] : [],
  };
  drawn.get(number)?.finalize();
  const made = await vegaEmbed(box, spec, {
    ...how(),
    renderer: points.length > MANY_POINTS ? "canvas" : "svg",
    actions: {export: true, source: false, compiled: false, editor: false},
    downloadFileName: chart.title,
    tooltip: {theme: dark.matches ? "dark" : "light"},
  });
  const {view} = made;
  // Vega's own pictures have neither a title nor a legend.
  for (const link of box.querySelectorAll(".vega-actions a")) {
    link.onclick = async (event) => {
      event.preventDefault();
      const {download} = link;
      const kind = download.split(".").at(-1);
      const href = await picture(chart, spec, view, kind);
      element("a", {href, download}).click();
    };
  }
  const show = view.tooltip();
  view.tooltip((handler, event, item, value) => show(handler, event, item,
    value && wordsOf(chart, xTitle, item.datum.datum ?? item.datum)));
  await view.signal("hidden", [...hidden]).runAsync();
  drawn.set(number, made);
}

const boxes = [...document.querySelectorAll("[data-chart]")];
let work = Promise.resolve();

/** Draws charts after those that are being drawn: two in a box would mix. */
function drawLater(some) {
  work = work.then(() => Promise.all(some.map(draw)));
}

const drawAll = () => drawLater(boxes);

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
axis.onchange = drawAll;
logSwitch.onchange = drawAll;
dark.onchange = drawAll;
for (const box of document.querySelectorAll("[data-log]")) {
  box.onchange = () => drawLater(
    [document.querySelector(`[data-chart="${box.dataset.log}"]`)]);
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

// A tap shows the values of a point until the next one, as a pointer does.
let tapped = null;
function send({target, clientX, clientY}, ...types) {
  for (const type of types) {
    target.dispatchEvent(
      new PointerEvent(type, {clientX, clientY, bubbles: true}));
  }
}
addEventListener("pointerdown", () => {
  if (tapped) send(tapped, "pointerout");
  tapped = null;
}, {capture: true});
for (const box of boxes) {
  box.addEventListener("click", (event) => {
    if (event.pointerType === "mouse") return;
    tapped = event;
    send(event, "pointerover", "pointermove");
  });
}

showLines();
drawAll();
