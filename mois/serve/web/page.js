// The page: joins the picture, the list, the tools and the keys with the server.

import { getBytes, getJson, leaveAtEnd, post, put } from "./server.js";
import { Viewer } from "./viewer.js";
import { Painting } from "./painting.js";
import { LesionList, inMl, inWords } from "./lesions.js";
import { Tools } from "./tools.js";
import { listen } from "./keys.js";
import { EarlierPicture } from "./earlier.js";
import { FollowUp } from "./follow_up.js";
import { Types, nameOf } from "./types.js";
import { Connection } from "./connection.js";

const POLL_MS = 250;
const by = (id) => document.getElementById(id);

let scan, state;
let chosen = null;
let correcting = false;
let suggestions = [];
let ask = Promise.resolve(); // one action after another

const viewer = new Viewer(by("scan"), showPlace);
const painting = new Painting(viewer);
const list = new LesionList(by("list"), (id) => choose(id, true));
const connection = new Connection(by("gone"), { pulse, back });
const types = new Types({ use: useType, add: addType });
const earlier = new EarlierPicture(by("earlier"), viewer);
const followUp = new FollowUp(by("follow-up"), earlier, { jump, say, subject: () => scan.earlier });
const tools = new Tools(viewer, by("ink"), { hover, preview, draw, say });

function say(text, isError = false) {
  by("says").textContent = text;
  by("says").classList.toggle("error", isError);
}

// does an action after those before it, and shows its error in one line
function act(action) {
  ask = ask.then(action).catch(complain);
  return ask;
}

// looks at something; actions need not wait for it. Its error is shown after what earlier actions still have to say.
const aside = (look) => look().catch((error) => act(() => Promise.reject(error)));

function complain(error) {
  connection.notes(error);
  say(error.message, true);
}

async function done(path, body, text) {
  const answer = await post(path, body);
  await show(answer.state);
  if (text) say(text(answer.result));
  return answer.result;
}

async function show(next) {
  state = next;
  suggestions = [];
  if (chosen !== null && !lesion(chosen)) [chosen, correcting] = [null, false];
  list.show(state.lesions, chosen, state.types);
  types.show(state);
  await painting.update(state, chosen);
  showButtons();
  if (told) showPlace(told);
  followUp.changed(state.actions);
  by("count").textContent = state.lesions.length;
  by("total").textContent = `${inMl(state.lesions.reduce((sum, each) => sum + each.ml, 0))} ml in all`;
  by("exemplar-count").textContent = `${state.exemplars}, ${state.negative} of them negative`;
  by("role").textContent = state.role === "writer" ? "" : `You watch; ${state.writer || "another page"} writes.`;
  const warnings = state.propagated ? await getJson("warnings") : [];
  by("warning-count").textContent = warnings.length;
  by("warnings").replaceChildren(...warnings.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}

function showButtons() {
  const one = lesion(chosen);
  by("chosen-name").textContent = one
    ? `Lesion ${one.id}: ${inWords(one)}, ${inMl(one.ml)} ml, ${Math.round(100 * one.confidence)} % sure`
    : "No lesion is chosen.";
  const watches = state.role !== "writer";
  for (const id of ["accept", "reject", "lock", "remove", "correct"]) by(id).disabled = !one || watches;
  for (const id of ["save", "add-type", "type", "bank-in"]) by(id).disabled = watches;
  by("lock").firstChild.textContent = one && one.status !== "open" ? "Unlock " : "Lock ";
  by("correct").setAttribute("aria-pressed", String(correcting));
  by("undo").disabled = !state.can_undo || watches;
  by("redo").disabled = !state.can_redo || watches;
  by("working").hidden = !state.finding.running;
  for (const id of ["propagate", "propagate-types"]) by(id).disabled = state.finding.running || watches;
  by("progress").value = state.finding.share;
}

const lesion = (id) => state?.lesions.find((each) => each.id === id) ?? null;

function choose(id, jump = false) {
  chosen = id;
  if (id === null) correcting = false;
  list.show(state.lesions, chosen);
  painting.choose(chosen);
  followUp.choose(chosen);
  showButtons();
  if (id === null) return;
  list.reveal(id);
  if (jump) viewer.moveTo(lesion(id).at);
}

// -- the pointer

// the lesion that a prompt is for: null lets the session decide
function target(voxel, positive) {
  if (correcting && chosen !== null) return chosen;
  const under = painting.lesionAt(voxel);
  if (under && (!positive || under.origin === "prompted" || under.status !== "open")) return under.id;
  return !positive && !under ? chosen : null;
}

let wanted = null; // the newest prompt to preview; older ones are forgotten
let asking = false;

// the lesion that the session decides on is that of its negative drawings
const asked = (kind, points, positive) => ({
  points,
  lesion: kind === "click" || positive || correcting ? target(points[0], positive) : null,
  positive,
});

function hover(voxel, positive = true) {
  showPlace(voxel);
  preview(voxel && tools.tool === "click" ? ["click", [voxel.map(Math.round)], positive] : null);
}

async function preview(prompt) {
  wanted = prompt;
  if (!wanted) painting.showPreview(null);
  if (asking) return;
  asking = true;
  while (wanted) {
    const [[kind, ...given], before] = [wanted, state];
    wanted = null;
    const shown = await post(`preview/${kind}`, asked(kind, ...given)).catch(() => null);
    if (state !== before) continue; // an action was done meanwhile
    if (shown?.why && kind === "click") by("place").textContent += `; a click is refused: ${shown.why}`;
    if (tools.shows(kind)) painting.showPreview(shown?.mask ?? null);
  }
  asking = false;
}

function draw(kind, voxels, positive) {
  wanted = null;
  return act(async () => {
    say("…");
    const id = await done(`draw/${kind}`, asked(kind, voxels, positive));
    const now = lesion(id);
    if (now) choose(id);
    say(now ? `Lesion ${id}: ${inMl(now.ml)} ml.` : "Nothing is found there again.");
  });
}

let told = null; // the place that the foot of the page tells of

function showPlace(voxel) {
  if (!scan || !state) return;
  const place = (told = voxel ?? viewer.cross());
  const row = (axis) => scan.to_lps_mm[axis].reduce((sum, v, n) => sum + v * (n < 3 ? place[n] : 1), 0);
  const mm = [0, 1, 2].map((axis) => row(axis).toFixed(1));
  const under = painting.lesionAt(place);
  const text = under ? `lesion ${under.id}, ${inWords(under)}, ${inMl(under.ml)} ml` : "no lesion";
  by("place").textContent = `LPS ${mm.join(", ")} mm: ${text}`;
}

// -- actions of buttons and keys

const one = (path, text) => () => {
  if (chosen !== null) act(() => done(`lesion/${path}`, { lesion: chosen }, () => text(chosen)));
};

const settle = (path, text) => () => {
  const id = chosen;
  if (id === null) return;
  act(async () => {
    const following = list.next(1);
    await done(`lesion/${path}`, { lesion: id });
    if (following !== null && following !== id && lesion(following)) choose(following, true);
    say(text(id));
  });
};

const actions = {
  accept: settle("accept", (id) => `Lesion ${id} is accepted.`),
  reject: settle("reject", (id) => `Lesion ${id} is rejected; it is not found again.`),
  remove: settle("remove", (id) => `Lesion ${id} is removed; it may be found again.`),
  lock: () => {
    const open = lesion(chosen)?.status === "open";
    one(open ? "lock" : "unlock", (id) => `Lesion ${id} is ${open ? "locked" : "open"}.`)();
  },
  undo: () => act(() => done("step/undo", {}, (worked) => (worked ? "Undone." : "There is nothing to undo."))),
  redo: () => act(() => done("step/redo", {}, (worked) => (worked ? "Done again." : "There is nothing to redo."))),
  save: () => act(() => done("step/save", {}, (folder) => `Saved in ${folder}`)),
  propagate: () => act(() => find("propagate")),
  propagateTypes: () => act(() => find("propagate?every_type=true")),
  nextType: () => useType(Types.next(state)),
  addType: () => types.open(),
  suggest: () => act(suggest),
  correct: () => {
    correcting = chosen !== null && !correcting;
    showButtons();
  },
  negative: () => {
    tools.negative = !tools.negative;
    by("negative").setAttribute("aria-pressed", String(tools.negative));
  },
  bankOut: () => act(bankOut),
  bankIn: () => by("bank-file").click(),
  compare: () => aside(() => followUp.compare()),
  beside: () => aside(() => followUp.showBeside()),
  changesOut: () => act(() => download("follow_up.csv")),
  warnings: () => {
    by("advice").open = true;
    by("advice").querySelector("summary").focus();
  },
  nextLesion: () => choose(list.next(1), true),
  lastLesion: () => choose(list.next(-1), true),
  clickCross: (event) => draw("click", [viewer.cross()], tools.negative === event.shiftKey),
  left: () => sideways(1),
  right: () => sideways(-1),
  up: () => viewer.step(viewer.sliceAxis === 2 ? 1 : 2, 1),
  down: () => viewer.step(viewer.sliceAxis === 2 ? 1 : 2, -1),
  slice: () => viewer.step(viewer.sliceAxis, 1),
  sliceBack: () => viewer.step(viewer.sliceAxis, -1),
  larger: () => viewer.zoom(1.25),
  smaller: () => viewer.zoom(1 / 1.25),
  escape: () => (state.finding.running ? post("cancel").then(() => say("Stopping…")) : choose(null)),
  help: () => by("help").showModal(),
};
for (const tool of ["look", "click", "scribble", "box", "lasso"]) actions[tool] = () => useTool(tool);

// the patient's right is on the left of the picture; in a sagittal picture the back is
function sideways(by) {
  if (viewer.sliceAxis === 0) viewer.step(1, -by);
  else viewer.step(0, by);
}

function useTool(tool) {
  tools.use(tool);
  for (const button of document.querySelectorAll("[data-tool]"))
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
}

function useType(name) {
  if (name === state.type) return say("There is one type of lesions; B adds another with its bundle.");
  act(() => done("type", { name }, () => `The next lesion is of the type ${nameOf(name)}.`));
}

function addType(name, bundle) {
  say("Loading the bundle…");
  act(() => done("type", { name, bundle }, () => `The next lesion is of the new type ${name}.`));
}

async function find(path) {
  const none = path === "propagate" ? !state.exemplars : !state.lesions.length;
  if (none) return say("Click a lesion first; then all that look like it can be found.", true);
  await show(await post(path));
  say("Looking for lesions like these…");
  follow(); // clicks go on meanwhile
}

async function follow() {
  while (state.finding.running) {
    await new Promise((wake) => setTimeout(wake, POLL_MS));
    const next = await getJson("pulse").catch((error) => connection.notes(error) && null);
    if (!next) return; // `back` says what became of it
    if (next.finding.running) {
      state.finding = next.finding;
      showButtons();
    } else await act(async () => show(await getJson("state")));
  }
  const { found, error } = state.finding;
  say(error || `${found} more ${found === 1 ? "lesion" : "lesions"} found.`, Boolean(error));
}

async function suggest() {
  if (!suggestions.length) suggestions = await getJson("suggest");
  if (!suggestions.length) return say("There is no suggestion; find all lesions first.");
  const next = suggestions.shift();
  choose(next.lesion, false);
  viewer.moveTo(next.at);
  say(next.lesion === null ? `Look here: ${next.reason}` : `Lesion ${next.lesion}: ${next.reason}`);
}

async function bankOut() {
  await download("bank.safetensors");
  say(`${state.exemplars} exemplars are in the file.`);
}

async function download(name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([await getBytes(name)]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// a row of the table: a lesion of now, or the place of one that is gone
function jump(row) {
  const now = row.lesions.find((id) => lesion(id));
  choose(now ?? null);
  if (row.at) viewer.moveTo(row.at);
}

by("bank-file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file)
    act(async () => {
      const answer = await put("bank", file);
      await show(answer.state);
      say(`${answer.result} exemplars came in.`);
    });
});

const BUTTONS = {
  "bank-in": "bankIn",
  "bank-out": "bankOut",
  "changes-out": "changesOut",
  "help-button": "help",
  "propagate-types": "propagateTypes",
  "add-type": "addType",
  cancel: "escape",
};
for (const id of ["accept", "reject", "lock", "remove", "correct", "undo", "redo", "save", "propagate", "suggest", "negative", "compare", "beside"])
  BUTTONS[id] = id;
for (const [id, action] of Object.entries(BUTTONS)) by(id).addEventListener("click", (event) => actions[action](event));
for (const button of document.querySelectorAll("[data-tool]"))
  button.addEventListener("click", () => useTool(button.dataset.tool));
by("order").addEventListener("change", (event) => list.reorder(event.target.value));
listen(actions, by("keys"));
leaveAtEnd();

function showEncoded(share) {
  by("encoding").hidden = share === 1;
  by("encoding").textContent = `Preparing the scan: ${Math.floor(100 * share)} %. You can click; it takes longer.`;
}

// shows what others did; the question has told the server that the page is open
function pulse(next) {
  showEncoded(next.encoded);
  const changed = ["actions", "role", "epoch", "writer"].some((name) => next[name] !== state[name]);
  if (changed) return act(async () => show(await getJson("state")));
}

// goes on when the server is back; a page that was not opened, or whose scan is another one now, is opened anew
async function back() {
  const now = await getJson("scan");
  if (!document.body.dataset.ready || JSON.stringify(now) !== JSON.stringify(scan)) return location.reload();
  const searched = state.finding.running;
  const before = state.actions;
  await show(await getJson("state"));
  const lost = searched && state.actions === before ? " The search was lost; press F again." : "";
  say(`The server is back; the session goes on after ${state.actions} actions.${lost}`);
}

async function open() {
  scan = await getJson("scan");
  by("subject").textContent = scan.subject;
  by("follow-up").hidden = !scan.earlier;
  viewer.sliceAxis = scan.slice_axis;
  await viewer.open(await getBytes("image.nii"), scan.shape);
  await show(await getJson("state"));
  showEncoded(state.encoded);
  useTool("click");
  const first = state.lesions[0];
  if (first) viewer.moveTo(first.at);
  say(first ? "The session goes on where it was." : "Click a lesion in the scan.");
  document.body.dataset.ready = "yes";
}

window.mois = { viewer, earlier, painting, tools, state: () => state }; // for tests
act(open).then(() => connection.watch());
