"use strict";
// Sorting: a click on a column's head sorts by it, a second click the other way round; empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = (row) => row.cells[head.cellIndex].dataset.sort;
      const compare = (a, b) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        const numbers = [Number(a), Number(b)];
        const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
        return ascending ? order : -order;
      };
      body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    });
  }
}
// Highlighting: pointing at a method's row, or pressing its name, fades the other methods in the scenario's figures.
for (const scenario of document.querySelectorAll(".scenario")) {
  let pressed = null;
  const show = (series) => {
    for (const part of scenario.querySelectorAll("svg [data-series]")) {
      part.classList.toggle("faded", series !== null && part.dataset.series !== series);
    }
  };
  for (const row of scenario.querySelectorAll("tr[data-series]")) {
    const chip = row.querySelector(".chip");
    row.addEventListener("mouseenter", () => show(row.dataset.series));
    row.addEventListener("mouseleave", () => show(pressed));
    chip.addEventListener("click", () => {
      pressed = pressed === row.dataset.series ? null : row.dataset.series;
      for (const other of scenario.querySelectorAll(".chip")) {
        other.setAttribute("aria-pressed", String(pressed !== null && other.closest("tr").dataset.series === pressed));
      }
      show(pressed);
    });
  }
}
