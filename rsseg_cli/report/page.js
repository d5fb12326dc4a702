"use strict";
// Sort a table by a column; a second click reverses the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const text = column === 0;
      const up = head.ariaSort ? head.ariaSort === "descending" : text;
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sign = up ? 1 : -1;
      const order = (a, b) => text ? key(a, 0).localeCompare(key(b, 0)) : key(a, column) - key(b, column);
      body.append(...[...body.rows].sort((a, b) => sign * order(a, b)));
    });
  });
}
// Select the form of the confusion matrix.
const choices = document.querySelectorAll("[data-show]");
for (const button of choices) {
  button.addEventListener("click", () => {
    choices.forEach((choice) => choice.setAttribute("aria-pressed", String(choice === button)));
    for (const matrix of document.querySelectorAll("[data-matrix]")) {
      matrix.hidden = matrix.dataset.matrix !== button.dataset.show;
    }
  });
}
// Print folded tables as well.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
