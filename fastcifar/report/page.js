"use strict";

// Heads of tables sort by their column: once ascending, once more descending; rows without a number stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, heads, column));
  });
}

function sort(table, heads, column) {
  const head = heads[column];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const each of heads) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const isText = head.classList.contains("text");
  const rows = [...table.tBodies[0].rows].map((row) => {
    const text = row.cells[column].textContent;
    return { row, key: isText ? text : Number.parseFloat(text.replaceAll(",", "")) };
  });
  rows.sort((one, other) => {
    if (isText) return (down ? -1 : 1) * one.key.localeCompare(other.key, "en", { numeric: true });
    const lacks = Number.isNaN(one.key) - Number.isNaN(other.key);
    return lacks || (down ? other.key - one.key : one.key - other.key) || 0;
  });
  table.tBodies[0].append(...rows.map((each) => each.row));
}

// The theme is the system's until the button changes it; where the browser keeps anything for a file, so it stays.
const root = document.documentElement;
const button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

function show() {
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Show the page ${isDark() ? "light" : "dark"}`);
}

try {
  const kept = localStorage.getItem("fastcifar-theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
} catch {}
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("fastcifar-theme", root.dataset.theme);
  } catch {}
  show();
});
system.addEventListener("change", show);
button.hidden = false;
show();
