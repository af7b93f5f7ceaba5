"use strict";
// What the tables and the charts of the page share.
const report = JSON.parse(document.getElementById("report").textContent);

/** An element with some properties and children; text is never markup. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
