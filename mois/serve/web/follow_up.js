// What became of the lesions of an earlier scan: a table, a row for each lesion, and its place in both pictures.

import { getJson } from "./server.js";
import { inMl } from "./lesions.js";

const NONE = "No earlier scan is open; start mois view with --earlier FOLDER.";
const CUT_OFF = 5; // percent of a lesion outside the other scan from which its volumes are not compared
const STATUSES = ["same", "new", "gone", "merged", "split", "regrouped", "outside"];

const percent = (value) => (value === null ? "" : `${value > 0 ? "+" : ""}${Math.round(value)} %`);
const amount = (ml) => (ml ? `${inMl(ml)} ml` : "–");

export class FollowUp {
  // picture: the earlier picture; on: {jump(row), say(text), subject()}
  constructor(panel, picture, on) {
    this.panel = panel;
    this.picture = picture;
    this.on = on;
    this.rows = [];
    this.actions = null; // of the session, when the table was made
  }

  async compare() {
    if (!this.on.subject()) throw new Error(NONE);
    this.panel.open = true;
    this.on.say("Comparing with the earlier scan…");
    const found = await getJson("follow_up");
    this.rows = found.rows;
    this.actions = found.actions;
    this.showTotal(found);
    const lines = this.rows.map((row) => newRow(row, () => this.jump(row)));
    this.panel.querySelector("tbody").replaceChildren(...lines);
    this.on.say(`Against ${this.on.subject()}: ${this.inWords()}.`);
  }

  inWords() {
    const count = (status) => this.rows.filter((row) => row.status === status).length;
    const texts = STATUSES.map((status) => [status, count(status)])
      .filter(([status, number]) => number || ["same", "new", "gone"].includes(status))
      .map(([status, number]) => `${number} ${status === "same" ? "the same" : status}`);
    return texts.join(", ");
  }

  showTotal({ total, in_both }) {
    const change = ([before, now]) => `${inMl(before)} → ${inMl(now)} ml ${percent(before ? (100 * (now - before)) / before : null)}`;
    const all = change([total.ml_before, total.ml_now]);
    this.panel.querySelector("#follow-up-total").textContent = in_both ? `${change(in_both)} where both scans show it` : all;
    this.panel.querySelector("#follow-up-old").hidden = true;
  }

  // the session has changed since the table was made
  changed(actions) {
    this.panel.querySelector("#follow-up-old").hidden = this.actions === null || this.actions === actions;
  }

  async showBeside(shown = !this.picture.isShown) {
    if (!this.on.subject()) throw new Error(NONE);
    if (shown) this.on.say("Registering the earlier scan…");
    const button = this.panel.querySelector("#beside");
    button.setAttribute("aria-pressed", String(shown));
    try {
      await this.picture.show(shown);
    } catch (error) {
      button.setAttribute("aria-pressed", "false");
      throw error;
    }
    this.on.say(shown ? "The earlier scan is beside this one; both show the same place." : "");
  }

  // marks the earlier lesions of a lesion that was chosen
  choose(lesion) {
    const row = lesion === null ? null : this.rows.find(({ lesions }) => lesions.includes(lesion));
    this.mark(row);
  }

  jump(row) {
    this.on.jump(row);
    this.mark(row);
    if (row.earlier_at && String(row.at) !== String(row.earlier_at)) this.picture.moveApart(row.earlier_at);
    if (row.status !== "outside") return;
    const where = row.earlier.length ? "This scan does" : "The earlier scan does";
    this.on.say(`${where} not show the place of lesion ${[...row.earlier, ...row.lesions].join(", ")}.`);
  }

  mark(row) {
    this.picture.choose(row?.earlier ?? []);
    const lines = this.panel.querySelectorAll("tbody tr");
    this.rows.forEach((each, n) => lines[n]?.classList.toggle("marked", each === row));
  }
}

function newRow(row, jump) {
  const line = document.createElement("tr");
  line.className = row.status;
  const name = document.createElement("th");
  name.scope = "row";
  const button = document.createElement("button");
  button.type = "button";
  const ids = row.lesions.length ? row.lesions : row.earlier;
  button.textContent = `${row.status} ${ids.join(", ")}`;
  button.title = `Earlier: ${row.earlier.join(", ") || "none"}. Now: ${row.lesions.join(", ") || "none"}.`;
  button.addEventListener("click", jump);
  name.append(button);
  line.append(name);
  const isCut = row.status !== "outside" && row.outside_percent >= CUT_OFF;
  const change = isCut ? "cut off" : percent(row.change_percent);
  for (const text of [amount(row.ml_before), amount(row.ml_now), change]) line.insertCell().textContent = text;
  if (isCut) line.title = `${Math.round(row.outside_percent)} % of it lies outside the other scan.`;
  return line;
}
