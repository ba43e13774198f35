// What the mouse does in the picture: look, click, scribble, box or lasso, and the preview under the pointer.

const PLANES = ["sagittal", "coronal", "axial"];
const CLOSE = 3; // pixels: a shorter movement is no line

export class Tools {
  // on: {hover(voxel, positive), preview([kind, voxels, positive]), draw(kind, voxels, positive), say(text)}
  constructor(viewer, ink, on) {
    this.viewer = viewer;
    this.ink = ink;
    this.on = on;
    this.tool = "click";
    this.negative = false;
    this.line = null;
    ink.addEventListener("pointerdown", (event) => this.down(event));
    ink.addEventListener("pointermove", (event) => this.move(event));
    ink.addEventListener("pointerup", (event) => this.up(event));
    ink.addEventListener("pointercancel", () => {
      this.drop();
      this.on.hover(null);
    });
    ink.addEventListener("pointerleave", () => this.on.hover(null));
    ink.addEventListener("contextmenu", (event) => event.preventDefault());
    ink.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.fit()).observe(ink);
  }

  use(tool) {
    this.tool = tool;
    this.ink.style.pointerEvents = tool === "look" ? "none" : "auto";
    this.drop();
    this.on.hover(null);
  }

  isPositive(event) {
    return this.negative === event.shiftKey;
  }

  at(event) {
    const { left, top } = this.ink.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  // the voxel at a position, on the middle of its slice
  voxel(x, y, plane) {
    const voxel = this.viewer.voxelAt(x, y);
    if (voxel && plane !== null) voxel[plane] = this.viewer.cross()[plane];
    return voxel;
  }

  down(event) {
    if (event.button !== 0) return;
    const [x, y] = this.at(event);
    const plane = this.viewer.planeAt(x, y);
    const voxel = plane === null ? null : this.voxel(x, y, plane);
    if (!voxel) return;
    this.viewer.canvas.focus();
    if (this.tool !== "click" && plane !== this.viewer.sliceAxis) {
      this.on.say(`Draw in the ${PLANES[this.viewer.sliceAxis]} plane: the scan's slices lie there.`, true);
      return;
    }
    this.ink.setPointerCapture(event.pointerId);
    this.line = { plane, voxels: [voxel], places: [[x, y]], positive: this.isPositive(event) };
  }

  move(event) {
    const [x, y] = this.at(event);
    if (!this.line) {
      const plane = this.viewer.planeAt(x, y);
      this.on.hover(plane === null ? null : this.voxel(x, y, plane), this.isPositive(event));
      return;
    }
    const { plane, places, voxels } = this.line;
    const voxel = this.viewer.planeAt(x, y) === plane ? this.voxel(x, y, plane) : null;
    const [lastX, lastY] = places.at(-1);
    if (!voxel || Math.hypot(x - lastX, y - lastY) < CLOSE) return;
    places.push([x, y]);
    voxels.push(voxel);
    this.draw();
    const drawn = this.drawn();
    if (drawn) this.on.preview(drawn);
  }

  up() {
    if (!this.line) return;
    const { voxels, positive } = this.line;
    const drawn = this.tool === "click" ? ["click", [voxels[0].map(Math.round)], positive] : this.drawn();
    this.drop();
    if (drawn) this.on.draw(...drawn);
    else this.on.say("Keep the button down while you draw.", true);
  }

  // what is drawn so far: [kind, voxels, positive]; null if it is too short
  drawn() {
    const { voxels, positive } = this.line;
    const least = { box: 2, scribble: 2, lasso: 3 }[this.tool];
    if (!(voxels.length >= least)) return null;
    return [this.tool, this.tool === "box" ? [voxels[0], voxels.at(-1)] : voxels, positive];
  }

  // whether the preview of a prompt of this kind is still of use
  shows(kind) {
    return kind === this.tool && (kind === "click" ? this.ink.matches(":hover") : this.line !== null);
  }

  drop() {
    this.line = null;
    this.ink.getContext("2d").clearRect(0, 0, this.ink.width, this.ink.height);
  }

  wheel(event) {
    const plane = this.viewer.planeAt(...this.at(event));
    if (plane === null) return;
    event.preventDefault();
    if (event.ctrlKey) return this.viewer.zoom(event.deltaY > 0 ? 1 / 1.25 : 1.25);
    this.viewer.step(plane, event.deltaY > 0 ? -1 : 1);
  }

  fit() {
    this.ink.width = this.ink.clientWidth * devicePixelRatio;
    this.ink.height = this.ink.clientHeight * devicePixelRatio;
  }

  draw() {
    const pen = this.ink.getContext("2d");
    const { places, positive } = this.line;
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, this.ink.width, this.ink.height);
    if (this.tool === "click") return;
    pen.lineWidth = 2;
    pen.strokeStyle = "#ff5ac8";
    pen.setLineDash(positive ? [] : [6, 4]); // a negative line is dashed
    const [[left, top], [right, bottom]] = [places[0], places.at(-1)];
    pen.beginPath();
    if (this.tool === "box") pen.rect(left, top, right - left, bottom - top);
    else for (const [x, y] of places) pen.lineTo(x, y);
    if (this.tool === "lasso") pen.closePath();
    pen.stroke();
  }
}
