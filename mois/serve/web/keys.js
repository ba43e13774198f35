// The keys of the page, and the panel that lists them.

export const KEYS = [
  ["1", "Look: the mouse moves the cross", "look"],
  ["2", "Click", "click"],
  ["3", "Scribble: a line through a lesion", "scribble"],
  ["4", "Box around a lesion", "box"],
  ["5", "Lasso: an outline", "lasso"],
  ["n", "Negative on or off (or hold Shift)", "negative"],
  ["Enter", "Click at the cross (with Shift: negative)", "clickCross"],
  ["c", "Prompts correct the chosen lesion, on or off", "correct"],
  ["f", "Find all lesions like them", "propagate"],
  ["e", "Find lesions of every type", "propagateTypes"],
  ["x", "Next lesion is of the next type", "nextType"],
  ["b", "Add a type of lesions with its bundle", "addType"],
  ["g", "Next suggestion", "suggest"],
  ["j", "Next lesion in the list", "nextLesion"],
  ["k", "Lesion before it", "lastLesion"],
  ["a", "Accept the chosen lesion", "accept"],
  ["r", "Reject it", "reject"],
  ["l", "Lock or unlock it", "lock"],
  ["Delete", "Remove it", "remove"],
  ["z", "Undo", "undo"],
  ["y", "Redo", "redo"],
  ["s", "Save", "save"],
  ["o", "Bank out: the exemplars as a file", "bankOut"],
  ["i", "Bank in: exemplars of another scan", "bankIn"],
  ["w", "Read the warnings", "warnings"],
  ["t", "Compare with the earlier scan", "compare"],
  ["v", "Earlier scan beside this one, on or off", "beside"],
  ["ArrowLeft", "Cross to the left of the picture", "left"],
  ["ArrowRight", "Cross to the right of the picture", "right"],
  ["ArrowUp", "Cross up", "up"],
  ["ArrowDown", "Cross down", "down"],
  ["PageUp", "Next slice", "slice"],
  ["PageDown", "Slice before it", "sliceBack"],
  ["+", "Larger, around the cross (or Ctrl and the wheel)", "larger"],
  ["-", "Smaller", "smaller"],
  ["Escape", "Stop the search; leave the chosen lesion", "escape"],
  ["?", "This list", "help"],
];

const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc", Delete: "Del" };
const IN_PICTURE = ["left", "right", "up", "down", "slice", "sliceBack", "clickCross"];

export function listen(actions, table) {
  for (const [key, text] of KEYS) {
    const row = table.insertRow();
    const name = document.createElement("kbd");
    name.textContent = NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);
    row.insertCell().append(name);
    row.insertCell().textContent = text;
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("select, input, textarea")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = KEYS.find(([each]) => each === key)?.[2];
    if (!action) return;
    if (IN_PICTURE.includes(action) && !["scan", ""].includes(event.target.id)) return;
    if (action === "clickCross" && event.target.closest("button, summary, a")) return;
    event.preventDefault();
    actions[action](event);
  });
}
