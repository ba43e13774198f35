// Masks of lesions: unpacked from the server's answers, painted into the picture, and found under the pointer.

export function unpack({ 0: corner, 1: shape, 2: bits }) {
  const packed = Uint8Array.from(atob(bits), (letter) => letter.charCodeAt(0));
  const inside = new Uint8Array(shape[0] * shape[1] * shape[2]);
  for (let n = 0; n < inside.length; n++) inside[n] = (packed[n >> 3] >> (7 - (n & 7))) & 1;
  return { corner, shape, inside };
}

// calls visit(voxel's number in the picture) for each voxel of a mask
export function eachVoxel(mask, dims, visit) {
  const [a, b, c] = mask.corner;
  let n = 0;
  for (let i = 0; i < mask.shape[0]; i++)
    for (let j = 0; j < mask.shape[1]; j++)
      for (let k = 0; k < mask.shape[2]; k++)
        if (mask.inside[n++]) visit(a + i + dims[0] * (b + j + dims[1] * (c + k)));
}

export function contains(mask, voxel) {
  const [i, j, k] = voxel.map((value, axis) => value - mask.corner[axis]);
  const [a, b, c] = mask.shape;
  if (i < 0 || j < 0 || k < 0 || i >= a || j >= b || k >= c) return false;
  return mask.inside[(i * b + j) * c + k] === 1;
}

// smallest box around several masks: [first voxel, edges]
export function boxAround(masks) {
  const some = masks.filter((mask) => mask.inside.length);
  if (!some.length) return null;
  const low = [0, 1, 2].map((axis) => Math.min(...some.map((mask) => mask.corner[axis])));
  const high = [0, 1, 2].map((axis) => Math.max(...some.map((mask) => mask.corner[axis] + mask.shape[axis])));
  return [low, high.map((end, axis) => end - low[axis])];
}
