"use strict";
for (const section of document.querySelectorAll("section.table")) {
  const body = section.querySelector("tbody"), rows = Array.from(body.rows);
  const [text, least, flagged] = ["text", "least", "flagged"].map((name) => section.querySelector(`.filters .${name}`));
  const count = section.querySelector(".count"), heads = Array.from(section.querySelectorAll("th"));
  const words = rows.map((row) => row.textContent.toLowerCase());

  function filter() {
    const wanted = text.value.trim().toLowerCase(), most = least ? parseFloat(least.value) : NaN;
    let shown = 0;
    rows.forEach((row, number) => {
      const fits = words[number].includes(wanted) && (isNaN(most) || parseFloat(row.dataset.most) >= most) &&
        (!flagged || !flagged.checked || row.dataset.flagged === "1");
      row.hidden = !fits;
      shown += fits;
      for (const link of row.querySelectorAll("a")) {
        const picture = document.getElementById(link.getAttribute("href").slice(1));
        if (picture) picture.hidden = !fits;
      }
    });
    count.value = `${shown} of ${rows.length}`;
  }

  function compare(column, down) {
    return (one, other) => {
      const [a, b] = [one, other].map((row) => row.cells[column].dataset.value);
      if (a === "" || b === "") return (a === "") - (b === "");
      const number = one.cells[column].className === "number" && other.cells[column].className === "number";
      const order = number ? a - b : a < b ? -1 : a > b ? 1 : 0;
      return down ? -order : order;
    };
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const numeric = rows.some((row) => row.cells[column].className === "number");
    const was = head.getAttribute("aria-sort"), down = was === "none" ? numeric : was === "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.slice().sort(compare(column, down)));
  }));
  for (const input of [text, least, flagged]) if (input) input.addEventListener("input", filter);
  section.querySelector(".filters").hidden = false;
  filter();
}
