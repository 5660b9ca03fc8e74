"use strict";
// What a heat map holds where the cursor is: by mouse, by touch, or by the arrow keys.
const FAR = 10; // cells, of PageUp and PageDown
for (const map of document.querySelectorAll("figure.map")) {
  const plot = map.querySelector(".plot");
  const cursor = map.querySelector(".cursor");
  const readout = map.querySelector(".readout");
  const source = map.querySelector("script");
  let data = null; // read when it is first asked for
  let row = 0;
  let column = 0;

  function number(value) {
    const text = (value / 10 ** data.digits).toFixed(data.digits);
    return text.replace("-", "\u2212");
  }

  function show(newRow, newColumn) {
    data ??= JSON.parse(source.textContent);
    const rows = data.rows.length;
    const columns = data.columns.length;
    row = Math.min(Math.max(newRow, 0), rows - 1);
    column = Math.min(Math.max(newColumn, 0), columns - 1);
    cursor.hidden = false;
    cursor.style.left = `${(100 * column) / columns}%`;
    cursor.style.bottom = `${(100 * row) / rows}%`;
    cursor.style.width = `${100 / columns}%`;
    cursor.style.height = `${100 / rows}%`;
    const value = data.values[row][column];
    const error = data.errors && data.errors[row][column];
    let told = "no value";
    if (value !== null) told = number(value);
    if (value !== null && error !== null) told += ` ± ${number(error)}`;
    const strong = document.createElement("b");
    strong.textContent = `${data.label} ${told}`;
    const names = document.createElement("span");
    names.textContent = `${data.rows[row]} × ${data.columns[column]}`;
    readout.replaceChildren(strong, document.createElement("br"), names);
  }

  function point(event) {
    const box = plot.getBoundingClientRect();
    data ??= JSON.parse(source.textContent);
    const across = (event.clientX - box.left) / box.width;
    const upward = (box.bottom - event.clientY) / box.height;
    show(
      Math.ceil(upward * data.rows.length) - 1, // the upper edge of a cell is its own
      Math.floor(across * data.columns.length),
    );
  }

  const steps = {
    ArrowUp: () => [row + 1, column],
    ArrowDown: () => [row - 1, column],
    ArrowRight: () => [row, column + 1],
    ArrowLeft: () => [row, column - 1],
    PageUp: () => [row + FAR, column],
    PageDown: () => [row - FAR, column],
    Home: () => [row, 0],
    End: () => [row, Infinity],
  };
  plot.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    show(...step());
  });
  plot.addEventListener("focus", () => show(row, column));
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  readout.textContent = "Point at a cell, or use the arrow keys.";
}
// What scrolls can be scrolled by keys.
const scrolling = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
document.querySelectorAll(".scroll").forEach((one) => scrolling.observe(one));
