// The lesions and the preview as they are painted. Knows which lesion lies under the pointer.

import { post } from "./server.js";
import { SHOWN, shownType } from "./viewer.js";
import { contains, unpack } from "./masks.js";

// in a session of several types the colour says the type, in a session of one it says the state
function valueOf(lesion, chosen, types) {
  if (lesion.id === chosen) return SHOWN.chosen;
  if (types.length > 1) return shownType(types.indexOf(lesion.type));
  if (lesion.status !== "open") return SHOWN.settled;
  return lesion.origin === "found" ? SHOWN.found : SHOWN.prompted;
}

export class Painting {
  constructor(viewer) {
    this.viewer = viewer;
    this.epoch = null;
    this.painted = new Map(); // id -> {number, mask, value}
    this.preview = null;
    this.types = [];
  }

  // paints what differs from before; asks only for masks that are new
  async update({ lesions, epoch, types }, chosen) {
    this.types = types;
    const same = (lesion) => epoch === this.epoch && this.painted.get(lesion.id)?.number === lesion.mask;
    const wanted = lesions.filter((lesion) => !same(lesion)).map((lesion) => lesion.mask);
    const masks = wanted.length ? await post("masks", { numbers: wanted }) : {};
    const next = new Map();
    for (const lesion of lesions) {
      const mask = same(lesion) ? this.painted.get(lesion.id).mask : masks[lesion.mask] && unpack(masks[lesion.mask]);
      if (mask) next.set(lesion.id, { number: lesion.mask, mask, value: valueOf(lesion, chosen, types), lesion });
    }
    const gone = [];
    for (const [id, old] of this.painted) if (next.get(id)?.mask !== old.mask) gone.push(old.mask);
    if (this.preview) gone.push(this.preview);
    this.preview = null;
    const before = this.painted;
    this.painted = next;
    this.epoch = epoch;
    const changed = [...next].filter(([id, now]) => {
      const old = before.get(id);
      return old?.mask !== now.mask || old.value !== now.value || gone.some((mask) => touch(mask, now.mask));
    });
    this.viewer.repaint(gone, changed.map(([, now]) => [now.mask, now.value]));
  }

  choose(chosen) {
    const changed = [];
    for (const each of this.painted.values()) {
      const value = valueOf(each.lesion, chosen, this.types);
      if (value !== each.value) changed.push([each.mask, value]);
      each.value = value;
    }
    this.viewer.repaint([], changed);
  }

  showPreview(packed) {
    const old = this.preview;
    if (!old && !packed) return;
    this.preview = packed && unpack(packed);
    const gone = old ? [old] : [];
    const under = [...this.painted.values()].filter((each) => old && touch(old, each.mask));
    const come = under.map((each) => [each.mask, each.value]);
    if (this.preview) come.push([this.preview, SHOWN.preview]);
    this.viewer.repaint(gone, come);
  }

  lesionAt(voxel) {
    const place = voxel.map(Math.round);
    for (const each of this.painted.values()) if (contains(each.mask, place)) return each.lesion;
    return null;
  }
}

function touch(a, b) {
  return [0, 1, 2].every(
    (axis) => a.corner[axis] < b.corner[axis] + b.shape[axis] && b.corner[axis] < a.corner[axis] + a.shape[axis],
  );
}
