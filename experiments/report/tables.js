// Tables: sorted by a click on a head, saved as CSV.
const MOST_ROWS = 2000; // of a table on the page; more would freeze it
const PRINTED_ROWS = 200; // of a table that is closed on the screen

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
  // What cells of a column have besides their numbers.
  const extras = columns.map((_, i) => [[2, "half range"], [3, "runs"]].filter(
    ([part]) => rows.some((row) => Array.isArray(row[i]) && row[i][part] > 0)));
  const quoted = (value) => {
    if (typeof value === "number") return String(value);
    let text = value ?? "";
    // A spreadsheet runs a cell with such a beginning as a formula.
    if (/^'*[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const heads = columns.flatMap(({title, file_unit}, i) => {
    const name = nameOf(title, file_unit);
    return [name, ...extras[i].map(([, what]) => `${name}, ${what}`)];
  });
  const lines = rows.map((row) => row.flatMap((cell, i) =>
    [valueOf(cell), ...extras[i].map(([part]) => cell?.[part] ?? null)]));
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
    // Lines break at spaces, and in names of folders after a comma or a slash.
    const parts = String(textOf(cell, table.columns[i])).split(/(?<=[,/])/);
    const made = element(i ? "td" : "th", {}, ...(i ? [parts.join("")]
      : parts.flatMap((part) => [part, element("wbr")])));
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
    // The first click shows the best row first.
    const orders = ["ascending", "descending"];
    if (column.larger) orders.reverse();
    button.onclick = () => {
      const order = head.ariaSort === orders[0] ? orders[1] : orders[0];
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = order;
      show(sorted(table.rows, index, order === "ascending" ? 1 : -1));
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
  const kind = inPairs ? "scroll pairs" : "scroll";
  const scroll = element("div", {className: kind, role: "region",
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

// On paper everything is open, but for clients and very long tables.
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("main details")) {
    if (closed.closest(".chart")) continue;
    const box = closed.querySelector("[data-table]");
    const table = box && report.tables[box.dataset.table];
    if (table?.section === "Clients" || table?.rows.length > PRINTED_ROWS) {
      continue;
    }
    if (box) fillOnce(box);
    closed.open = true;
  }
});
