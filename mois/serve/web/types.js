// Types of lesions: which one the next lesion has, their colours, and a new one with its bundle.

import { TYPE_COLOURS } from "./viewer.js";

const by = (id) => document.getElementById(id);

// a type without a name is that of the model with which the session began
export const nameOf = (type) => type || "no name";

// class of a lesion's colour in the list; none in a session of one type
export const colourOf = (types, type) => (types.length > 1 ? ` type-${types.indexOf(type) % TYPE_COLOURS.length}` : "");

export class Types {
  // on: {use(name), add(name, bundle)}
  constructor(on) {
    by("type").addEventListener("change", (event) => on.use(event.target.value));
    by("new-type-form").addEventListener("submit", () => {
      const [name, bundle] = [by("new-type-name").value.trim(), by("new-type-bundle").value.trim()];
      on.add(name, bundle);
    });
    by("new-type-close").addEventListener("click", () => by("new-type").close());
  }

  show({ types, type }) {
    const several = types.length > 1;
    by("type-label").hidden = !several;
    by("propagate-types").hidden = !several;
    by("type").replaceChildren(...types.map((name) => new Option(nameOf(name), name, false, name === type)));
    by("type-mark").className = `mark${colourOf(types, type)}`;
  }

  open() {
    by("new-type").showModal();
    by("new-type-name").focus();
  }

  // the type after the current one
  static next({ types, type }) {
    return types[(types.indexOf(type) + 1) % types.length];
  }
}
