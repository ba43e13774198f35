// What became of the lesions of an earlier scan: a table, a row for each lesion.

import { inMl } from "./lesions.js";

const percent = (value) => (value === null ? "" : `${value > 0 ? "+" : ""}${Math.round(value)} %`);

// fills the table; `jump` is told the place of a row that was chosen
export function showChanges(panel, { rows, total }, jump) {
  panel.querySelector("#follow-up-total").textContent =
    `${inMl(total.ml_before)} → ${inMl(total.ml_now)} ml ${percent(total.change_percent)}`;
  panel.querySelector("tbody").replaceChildren(...rows.map((row) => newRow(row, jump)));
}

function newRow(row, jump) {
  const line = document.createElement("tr");
  line.className = row.status;
  const name = document.createElement("th");
  name.scope = "row";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `${row.status} ${(row.lesions.length ? row.lesions : row.earlier).join(", ")}`;
  button.addEventListener("click", () => jump(row));
  name.append(button);
  line.append(name);
  for (const text of [amount(row.ml_before), amount(row.ml_now), percent(row.change_percent)])
    line.insertCell().textContent = text;
  return line;
}

const amount = (ml) => (ml ? `${inMl(ml)} ml` : "–");
