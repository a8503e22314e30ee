"use strict";
// A click on a column's name sorts the table by it, another turns the order round, a third brings the first order back.
const units = { k: 1e3, M: 1e6, G: 1e9 };
const figure = (cell) => {
  const text = cell.textContent.trim().replaceAll("−", "-");
  const found = text.match(/^(<\s*)?[[+]*(-?[\d.]+(?:[eE][-+]?\d+)?)(?: ([kMG])\b)?/);
  return found ? Number(found[2]) * (units[found[3]] ?? 1) - (found[1] ? 1e-12 : 0) : NaN;
};
const compare = (column, numeric, sign) => (left, right) => {
  const [a, b] = [left.cells[column], right.cells[column]];
  if (!numeric) return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
  const [x, y] = [figure(a), figure(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // what has no figure comes last
  return sign * (x - y);
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const isApart = (row) => row.classList.contains("apart");
  const rows = [...body.rows].filter((row) => !isApart(row));
  if (rows.length < 2) continue;
  heads.forEach((head, column) => {
    const numeric = head.classList.contains("num");
    const turns = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = turns[(turns.indexOf(head.getAttribute("aria-sort") ?? "none") + 1) % 3];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next !== "none") head.setAttribute("aria-sort", next);
      const order = [...rows];
      if (next !== "none") order.sort(compare(column, numeric, next === "ascending" ? 1 : -1));
      body.append(...order);
    });
  });
}
// The points of a figure are one stop of the Tab key; arrow keys go from one to the next, Escape hides what is shown.
const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
for (const group of document.querySelectorAll(".spots")) {
  const spots = [...group.children];
  const stop = (chosen) => spots.forEach((spot) => (spot.tabIndex = spot === chosen ? 0 : -1));
  stop(spots[0]);
  group.addEventListener("focusin", (event) => stop(event.target));
  group.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.target.blur();
    const ends = { Home: spots[0], End: spots.at(-1) };
    const next = ends[event.key] ?? spots[spots.indexOf(event.target) + (steps[event.key] ?? NaN)];
    if (event.key in steps || event.key in ends) event.preventDefault();
    next?.focus();
  });
}
// What goes on beyond its frame says so below, and fades at the side where there is more of it.
for (const box of document.querySelectorAll(".scroll, .paper")) {
  const look = () => {
    box.classList.toggle("cut", box.scrollWidth > box.clientWidth + 1);
    box.classList.toggle("more", box.scrollWidth > box.clientWidth + box.scrollLeft + 1);
  };
  box.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(box);
}
