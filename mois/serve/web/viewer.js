// The picture: three planes of the scan by NiiVue, and the lesions painted over them.

import { Niivue, SHOW_RENDER, SLICE_TYPE } from "./niivue/niivue.js";
import { boxAround, eachVoxel } from "./masks.js";

// what a voxel shows; the list says the same in words
export const SHOWN = { found: 1, prompted: 2, settled: 3, chosen: 4, preview: 5 };
// colours of types of lesions; page.css has the same
export const TYPE_COLOURS = [
  [255, 176, 0],
  [64, 156, 255],
  [60, 190, 110],
  [255, 110, 80],
  [190, 140, 255],
  [0, 210, 210],
  [225, 215, 90],
  [200, 150, 110],
];
const FIRST_TYPE = 6; // value of a voxel of the first type
const channel = (n, shown) => [...shown, ...TYPE_COLOURS.map((colour) => colour[n])];
const COLOURS = {
  R: channel(0, [0, 255, 64, 60, 255, 255]),
  G: channel(1, [0, 176, 156, 190, 255, 90]),
  B: channel(2, [0, 0, 255, 110, 255, 200]),
  A: [0, ...Array(FIRST_TYPE - 1 + TYPE_COLOURS.length).fill(255)],
  labels: ["", "found", "prompted", "accepted or locked", "chosen", "preview", ...TYPE_COLOURS.map((_, n) => `type ${n + 1}`)],
};
export const shownType = (index) => FIRST_TYPE + (index % TYPE_COLOURS.length);
const PAINT_UNIT = 7; // texture unit of NiiVue's drawing

export class Viewer {
  constructor(canvas, onMove, colours = COLOURS) {
    this.canvas = canvas;
    this.colours = colours;
    this.niivue = new Niivue({
      backColor: [0.067, 0.075, 0.09, 1],
      crosshairColor: [0.35, 0.75, 0.95, 0.8],
      crosshairWidth: 1,
      crosshairGap: 14,
      isRadiologicalConvention: true, // the patient's right is on the left, as radiologists expect
      show3Dcrosshair: false,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      isColorbar: false,
      isNearestInterpolation: false,
      dragAndDropEnabled: false,
      loadingText: "",
      logLevel: "error",
      fontColor: [0.91, 0.92, 0.94, 1],
      fontMinPx: 16,
      isOrientationTextVisible: true,
      drawOpacity: 0.4,
    });
    this.niivue.onLocationChange = () => onMove(this.cross());
  }

  async open(bytes, shape) {
    const { niivue } = this;
    await niivue.attachToCanvas(this.canvas);
    niivue.setSliceType(SLICE_TYPE.MULTIPLANAR);
    await niivue.loadFromArrayBuffer(bytes, "scan.nii");
    this.shape = shape;
    niivue.createEmptyDrawing();
    niivue.setDrawColormap(this.colours);
    niivue.setDrawOpacity(0.4);
    niivue.drawRimOpacity = 0.95;
    niivue.drawScene();
    this.paint = niivue.drawBitmap;
  }

  get dims() {
    return this.shape;
  }

  // -- places: voxels (i, j, k) of the scan; whole numbers are voxel centres

  voxelAt(x, y) {
    const ratio = this.niivue.uiData.dpr ?? devicePixelRatio;
    const place = this.niivue.canvasPos2frac([x * ratio, y * ratio]);
    if (place[0] < 0) return null;
    return this.shape.map((edge, axis) => Math.min(edge - 0.500001, Math.max(-0.5, place[axis] * edge - 0.5)));
  }

  // axis across the plane under a position of the canvas: 0 sagittal, 1 coronal, 2 axial
  planeAt(x, y) {
    const ratio = this.niivue.uiData.dpr ?? devicePixelRatio;
    const tile = this.niivue.tileIndex(x * ratio, y * ratio);
    if (tile < 0) return null;
    return { 0: 2, 1: 1, 2: 0 }[this.niivue.screenSlices[tile].axCorSag] ?? null;
  }

  // position in the canvas, in CSS pixels, of a place on a plane through the cross
  positionOf(voxel, plane) {
    const { niivue } = this;
    const ratio = niivue.uiData.dpr ?? devicePixelRatio;
    const wanted = { 2: 0, 1: 1, 0: 2 }[plane];
    const slice = niivue.screenSlices.find((each) => each.axCorSag === wanted);
    const mm = niivue.frac2mm(this.fractions(voxel));
    const [across, up] = { 2: [0, 1], 1: [0, 2], 0: [1, 2] }[plane];
    const [left, top, width, height] = slice.leftTopWidthHeight; // a mirrored plane has a negative width
    const x = (mm[across] - slice.leftTopMM[0]) / slice.fovMM[0];
    const y = 1 - (mm[up] - slice.leftTopMM[1]) / slice.fovMM[1];
    return [(left + x * width) / ratio, (top + y * height) / ratio];
  }

  fractions(voxel) {
    return voxel.map((value, axis) => (value + 0.5) / this.shape[axis]);
  }

  cross() {
    const place = this.niivue.scene.crosshairPos;
    return this.shape.map((edge, axis) => Math.min(edge - 1, Math.max(0, Math.round(place[axis] * edge - 0.5))));
  }

  moveTo(voxel) {
    this.niivue.scene.crosshairPos = this.fractions(voxel);
    this.niivue.createOnLocationChange();
    this.niivue.drawScene();
  }

  // larger or smaller, around the cross
  zoom(factor) {
    const { niivue } = this;
    const middle = niivue.frac2mm([0.5, 0.5, 0.5]);
    const cross = niivue.frac2mm(niivue.scene.crosshairPos);
    const scale = Math.min(16, Math.max(1, niivue.scene.pan2Dxyzmm[3] * factor));
    const pan = [0, 1, 2].map((axis) => (scale > 1 ? middle[axis] - cross[axis] : 0));
    niivue.setPan2Dxyzmm([...pan, scale]);
  }

  // from now on, what moves the cross or the zoom of one picture moves those of the other; both show the same voxels
  linkTo(other) {
    other.takeOver(this);
    other.follow(this);
    this.follow(other);
  }

  follow(leader) {
    const draw = leader.niivue.drawScene.bind(leader.niivue);
    const place = ({ crosshairPos, pan2Dxyzmm } = leader.niivue.scene) => String([...crosshairPos, ...pan2Dxyzmm]);
    let last = place();
    leader.niivue.drawScene = () => {
      draw();
      const moved = place() !== last;
      last = place();
      if (moved && !leader.apart) this.takeOver(leader);
    };
  }

  takeOver({ niivue: { scene } }) {
    const own = this.niivue.scene;
    own.crosshairPos = [...scene.crosshairPos];
    own.pan2Dxyzmm = [...scene.pan2Dxyzmm];
    this.apart = true; // the leader is there already
    this.niivue.createOnLocationChange();
    this.niivue.drawScene();
    this.apart = false;
  }

  // a place of its own, until one of both pictures is moved again
  moveApart(voxel) {
    this.apart = true;
    this.moveTo(voxel);
    this.apart = false;
  }

  step(axis, by) {
    const voxel = this.cross();
    voxel[axis] = Math.min(this.shape[axis] - 1, Math.max(0, voxel[axis] + by));
    this.moveTo(voxel);
  }

  // -- lesions

  // erases the masks in `gone`, paints each [mask, value] of `come`, and sends only their box to the graphics card
  repaint(gone, come) {
    const box = boxAround([...gone, ...come.map(([mask]) => mask)]);
    if (!box) return;
    for (const mask of gone) eachVoxel(mask, this.shape, (n) => (this.paint[n] = 0));
    for (const [mask, value] of come) eachVoxel(mask, this.shape, (n) => (this.paint[n] = value));
    this.upload(...box);
    this.niivue.drawScene();
  }

  upload([i, j, k], [a, b, c]) {
    const { gl, drawTexture } = this.niivue;
    const [width, height] = this.shape;
    const part = new Uint8Array(a * b * c);
    for (let z = 0; z < c; z++)
      for (let y = 0; y < b; y++) {
        const start = i + width * (j + y + height * (k + z));
        part.set(this.paint.subarray(start, start + a), a * (y + b * z));
      }
    gl.activeTexture(gl.TEXTURE0 + PAINT_UNIT);
    gl.bindTexture(gl.TEXTURE_3D, drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, i, j, k, a, b, c, gl.RED, gl.UNSIGNED_BYTE, part);
  }
}
