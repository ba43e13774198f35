// The earlier scan beside the scan of now: the same place, the same zoom, and its own lesions.

import { getBytes, getJson } from "./server.js";
import { Viewer } from "./viewer.js";
import { contains, unpack } from "./masks.js";
import { inMl } from "./lesions.js";

const SHOWN = { earlier: 1, chosen: 2 };
const COLOURS = {
  R: [0, 190, 255],
  G: [0, 130, 255],
  B: [0, 255, 255],
  A: [0, 255, 255],
  labels: ["", "earlier", "chosen"],
};

export class EarlierPicture {
  // frame: the element with its canvas, glass and caption; now: the viewer of the scan of now
  constructor(frame, now) {
    this.frame = frame;
    this.now = now;
    this.lesions = [];
    this.chosen = [];
    this.opening = null;
    const canvas = frame.querySelector("canvas");
    this.viewer = new Viewer(canvas, () => this.showPlace(), COLOURS);
    this.steer(frame.querySelector(".glass"));
  }

  get isShown() {
    return !this.frame.hidden;
  }

  async show(shown) {
    this.frame.hidden = !shown;
    this.frame.parentElement.classList.toggle("two", shown);
    if (shown) {
      this.opening ??= this.open().catch((error) => {
        this.opening = null;
        this.frame.hidden = true;
        this.frame.parentElement.classList.remove("two");
        throw error;
      });
      await this.opening;
    }
  }

  // loads the picture once; the first time the server registers both scans
  async open() {
    this.caption("Registering the earlier scan…", "");
    const about = await getJson("earlier");
    const bytes = await getBytes("earlier.nii");
    this.viewer.sliceAxis = this.now.sliceAxis;
    await this.viewer.open(bytes, this.now.shape);
    this.lesions = about.lesions.map((each) => ({ ...each, mask: each.mask && unpack(each.mask) }));
    const how = about.registered ? `, registered (${Math.round(about.moved_mm)} mm apart)` : "";
    this.caption(`Earlier: ${about.subject}${how}`, "");
    this.paint();
    this.now.linkTo(this.viewer);
    this.showPlace();
  }

  caption(text, place) {
    this.frame.querySelector(".name").textContent = text;
    this.frame.querySelector(".place").textContent = place;
  }

  // paints the earlier lesions; those in `chosen` stand out
  choose(chosen) {
    const before = this.chosen;
    this.chosen = chosen;
    if (this.lesions.length && String(before) !== String(chosen)) this.paint();
  }

  paint() {
    const come = this.lesions
      .filter(({ mask }) => mask)
      .map(({ id, mask }) => [mask, this.chosen.includes(id) ? SHOWN.chosen : SHOWN.earlier]);
    this.viewer.repaint([], come);
  }

  moveApart(voxel) {
    if (this.viewer.shape) this.viewer.moveApart(voxel);
  }

  showPlace() {
    if (!this.viewer.shape) return;
    const place = this.viewer.cross();
    const under = this.lesions.find(({ mask }) => mask && contains(mask, place));
    this.frame.querySelector(".place").textContent = under ? `lesion ${under.id}, ${inMl(under.ml)} ml` : "no lesion";
  }

  // the mouse moves the cross, the wheel the slices
  steer(glass) {
    const { viewer } = this;
    const at = (event) => {
      const { left, top } = glass.getBoundingClientRect();
      return [event.clientX - left, event.clientY - top];
    };
    const move = (event) => {
      const [x, y] = at(event);
      const plane = viewer.shape ? viewer.planeAt(x, y) : null;
      const voxel = plane === null ? null : viewer.voxelAt(x, y);
      if (!voxel) return;
      voxel[plane] = viewer.cross()[plane];
      viewer.moveTo(voxel);
    };
    glass.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      glass.setPointerCapture(event.pointerId);
      move(event);
    });
    glass.addEventListener("pointermove", (event) => event.buttons & 1 && move(event));
    glass.addEventListener(
      "wheel",
      (event) => {
        const plane = viewer.shape ? viewer.planeAt(...at(event)) : null;
        if (plane === null) return;
        event.preventDefault();
        if (event.ctrlKey) viewer.zoom(event.deltaY > 0 ? 1 / 1.25 : 1.25);
        else viewer.step(plane, event.deltaY > 0 ? -1 : 1);
      },
      { passive: false },
    );
  }
}
