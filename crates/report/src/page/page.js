"use strict";
// Tables are sorted by a click on a heading: up, then down. Without this script they stay as they are.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      const value = (row) => {
        const cell = row.cells[column];
        if (!cell) return "";
        return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
      };
      const compare = (a, b) => {
        // Cells without a number stay below.
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
        const order = typeof a === "number" ? a - b : a.localeCompare(b);
        return up ? order : -order;
      };
      body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  });
}
// Tables whose columns have kinds are filtered by words and by kinds.
for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 2 || !table.querySelector("td[data-kind]")) continue;
  const form = document.createElement("form");
  form.className = "filters";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", `Filter: ${table.caption.textContent}`);
  form.addEventListener("submit", (event) => event.preventDefault());
  const labelled = (text, field) => {
    const label = document.createElement("label");
    label.append(text, field);
    form.append(label);
    return field;
  };
  const words = labelled("words ", document.createElement("input"));
  words.type = "search";
  const chosen = [];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const kinds = new Set(rows.map((row) => row.cells[column].dataset.kind).filter((kind) => kind !== undefined));
    if (kinds.size < 2) return;
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...[...kinds].sort().map((kind) => new Option(kind, `=${kind}`)));
    chosen.push([column, labelled(`${heading.textContent} `, select)]);
  });
  const shown = document.createElement("output");
  form.append(shown);
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const isOfKind = ([column, select]) => select.value === "" || select.value === `=${row.cells[column].dataset.kind}`;
      row.hidden = !(wanted.every((word) => text.includes(word)) && chosen.every(isOfKind));
    }
    shown.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  form.addEventListener("input", filter);
  filter();
  table.closest(".scroll").before(form);
}
// Of pictures of single epochs one is shown, and a slider chooses it. Without this script all of them are in a folded list.
for (const part of document.querySelectorAll("details.steps")) {
  const list = part.querySelector("ol");
  const steps = [...list.children];
  if (steps.length < 2) continue;
  const label = document.createElement("label");
  const slider = document.createElement("input");
  slider.type = "range";
  slider.min = 0;
  slider.max = steps.length - 1;
  slider.value = steps.length - 1;
  label.append("Epoch", slider);
  const show = () => {
    const chosen = Number(slider.value);
    steps.forEach((step, number) => { step.hidden = number !== chosen; });
    slider.setAttribute("aria-valuetext", steps[chosen].querySelector("figcaption").textContent);
  };
  slider.addEventListener("input", show);
  window.addEventListener("beforeprint", () => { steps.forEach((step) => { step.hidden = false; }); });
  window.addEventListener("afterprint", show);
  list.before(label);
  part.open = true;
  show();
}
// What is folded on the screen is printed too.
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
});
