// The list of lesions. Only the rows in sight are in the page, so 300 lesions scroll as smoothly as three.

import { colourOf } from "./types.js";

const ROW = 44; // height of a row in pixels, as page.css has it
const MORE = 4; // rows kept above and below those in sight

const ORDERS = {
  confidence: (a, b) => a.confidence - b.confidence || a.id - b.id,
  volume: (a, b) => b.ml - a.ml || a.id - b.id,
  id: (a, b) => a.id - b.id,
};

export const inMl = (ml) => (ml < 0.095 ? ml.toFixed(3) : ml < 9.95 ? ml.toFixed(2) : ml.toFixed(1));

export const inWords = (lesion) =>
  lesion.status !== "open" ? lesion.status : lesion.origin === "found" ? "found" : "prompted";

export class LesionList {
  constructor(element, onChoose) {
    this.element = element;
    this.onChoose = onChoose;
    this.lesions = [];
    this.order = "confidence";
    this.chosen = null;
    this.types = [];
    this.space = document.createElement("div");
    this.space.className = "space";
    this.space.setAttribute("role", "presentation");
    element.append(this.space);
    this.rows = new Map(); // index in the list -> its row
    this.none = this.space.appendChild(empty());
    element.addEventListener("scroll", () => this.draw(), { passive: true });
    element.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (row) onChoose(Number(row.dataset.lesion));
    });
    this.height = 0;
    new ResizeObserver(() => this.resize()).observe(element);
  }

  show(lesions, chosen, types = this.types) {
    this.types = types;
    this.lesions = [...lesions].sort(ORDERS[this.order]);
    this.chosen = chosen;
    this.space.style.height = `${Math.max(1, this.lesions.length) * ROW}px`;
    this.draw(true);
  }

  reorder(order) {
    this.order = order;
    this.show(this.lesions, this.chosen);
  }

  // the lesion after (or before) the chosen one
  next(by) {
    const at = this.lesions.findIndex((lesion) => lesion.id === this.chosen);
    const index = at < 0 ? (by > 0 ? 0 : this.lesions.length - 1) : at + by;
    return this.lesions[Math.min(this.lesions.length - 1, Math.max(0, index))]?.id ?? null;
  }

  reveal(id) {
    const at = this.lesions.findIndex((lesion) => lesion.id === id);
    if (at < 0) return;
    const { scrollTop, clientHeight } = this.element;
    if (at * ROW < scrollTop) this.element.scrollTop = at * ROW;
    else if ((at + 1) * ROW > scrollTop + clientHeight) this.element.scrollTop = (at + 1) * ROW - clientHeight;
    this.draw();
  }

  // a chosen lesion that was in sight stays in sight
  resize() {
    const at = this.lesions.findIndex((lesion) => lesion.id === this.chosen);
    const { scrollTop, clientHeight } = this.element;
    const seen = at >= 0 && at * ROW < scrollTop + this.height && (at + 1) * ROW > scrollTop;
    this.height = clientHeight;
    this.draw();
    if (seen) this.reveal(this.chosen);
  }

  // draws the rows in sight; rows that leave are used again for those that come
  draw(anew = false) {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - MORE);
    const last = Math.min(this.lesions.length, Math.ceil((scrollTop + clientHeight) / ROW) + MORE);
    if (!anew && first === this.first && last === this.last) return;
    [this.first, this.last] = [first, last];
    const free = [];
    for (const [index, row] of this.rows)
      if (anew || index < first || index >= last) {
        free.push(row);
        this.rows.delete(index);
      }
    for (let index = first; index < last; index++)
      if (!this.rows.has(index)) {
        const row = free.pop() ?? this.space.appendChild(newRow());
        fill(row, this.lesions[index], index, this.lesions.length, this.chosen, this.types);
        this.rows.set(index, row);
      }
    for (const row of free) row.remove();
    this.none.hidden = this.lesions.length > 0;
    const drawn = [...this.rows.keys()].some((index) => this.lesions[index].id === this.chosen);
    if (!drawn) this.element.removeAttribute("aria-activedescendant");
    else this.element.setAttribute("aria-activedescendant", `lesion-${this.chosen}`);
  }
}

function newRow() {
  const row = document.createElement("div");
  row.setAttribute("role", "option");
  for (const name of ["mark", "id", "state", "ml", "sure"]) {
    const part = document.createElement("span");
    part.className = name;
    if (name !== "mark") part.append("");
    row.append(part);
  }
  return row;
}

function fill(row, lesion, index, count, chosen, types) {
  const words = inWords(lesion);
  row.id = `lesion-${lesion.id}`;
  row.className = `lesion ${words}${colourOf(types, lesion.type)}`;
  row.dataset.lesion = lesion.id;
  row.setAttribute("aria-selected", String(lesion.id === chosen));
  row.setAttribute("aria-posinset", index + 1);
  row.setAttribute("aria-setsize", count);
  row.style.top = `${index * ROW}px`;
  const texts = [
    lesion.id,
    lesion.type ? `${words}, ${lesion.type}` : words,
    `${inMl(lesion.ml)} ml`,
    `${Math.round(100 * lesion.confidence)} %`,
  ];
  texts.forEach((text, n) => (row.children[n + 1].firstChild.data = text));
}

function empty() {
  const row = document.createElement("div");
  row.className = "empty";
  row.setAttribute("role", "option");
  row.setAttribute("aria-disabled", "true");
  row.textContent = "None yet: click a lesion in the scan.";
  return row;
}
