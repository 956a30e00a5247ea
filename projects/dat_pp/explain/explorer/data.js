'use strict';

/** Values of all 65536 half-precision numbers. */
const HALF = (() => {
  const values = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent === 31
      ? (fraction ? NaN : Infinity)
      : exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
    values[bits] = bits >> 15 ? -size : size;
  }
  return values;
})();

const TYPES = { float32: Float32Array, float16: Uint16Array, uint16: Uint16Array };

/** The compressed bytes of a block, which stand in the page as base64. */
async function readBytes(index) {
  const element = document.getElementById(`data-${index}`);
  const text = atob(element.textContent);
  element.textContent = '';  // the page would hold them twice
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Response(stream).arrayBuffer();
}

/** Half precision to single. */
function widen(half) {
  const values = new Float32Array(half.length);
  for (let i = 0; i < half.length; i++) values[i] = HALF[half[i]];
  return values;
}

/** A block with attention in one image. Queries are [row, column] of its map. */
class Block {
  constructor(info) {
    Object.assign(this, info);
    this.deformable = this.grid !== undefined;
    this.loaded = null;
    this.ready = false;
    this.cached = { key: -1, weights: null };
  }

  /** Decode the block's arrays, once. */
  load() {
    this.loaded ??= readBytes(this.data).then((buffer) => {
      for (const [name, [type, offset, count]] of Object.entries(this.parts)) {
        this[name] = new TYPES[type](buffer, offset, count);
      }
      if (this.deformable) {
        this.points = this.pixelsOf(this.positions);
        // Where the clamping of positions puts reference points that lie beyond the map.
        this.origins = this.pixelsOf(this.reference.map((p) => Math.min(1, Math.max(-1, p))));
      }
      if (this.form === 'products') {
        this.k = widen(this.k);
        if (this.table) this.bias = widen(this.table);
      }
      this.ready = true;
    });
    return this.loaded;
  }

  /** Normalized (y, x) pairs to pixels of the image. */
  pixelsOf(normalized) {
    const pixels = new Float32Array(normalized.length);
    for (let i = 0; i < normalized.length; i++) {
      const axis = i % 2;
      const cell = (normalized[i] + 1) / 2 * (this.size[axis] - 1);
      pixels[i] = this.first[axis] + cell * this.step[axis];
    }
    return pixels;
  }

  /** The cell nearest to a pixel [y, x], not in padding. */
  cellOf(pixel) {
    return pixel.map((p, axis) => {
      const cell = Math.round((p - this.first[axis]) / this.step[axis]);
      return Math.min(Math.max(cell, 0), this.inside[axis] - 1);
    });
  }

  /** The center of a cell in pixels [y, x]. */
  centerOf(cell) {
    return cell.map((i, axis) => this.first[axis] + i * this.step[axis]);
  }

  /** Row and column of the first neighbor of a query. */
  windowOf(cell, kernel = this.kernel, padded = this.padded) {
    return cell.map((i, axis) =>
      Math.min(Math.max(i - (kernel >> 1), 0), padded[axis] - kernel));
  }

  /** Pixels (y, x) of the samples or neighbors of a query: groups x samples x 2. */
  samplesOf(cell) {
    if (this.deformable) return this.points;
    const [top, left] = this.windowOf(cell);
    const pixels = new Float32Array(2 * this.samples);
    for (let n = 0; n < this.samples; n++) {
      const center = this.centerOf([top + Math.floor(n / this.kernel), left + n % this.kernel]);
      pixels[2 * n] = center[0];
      pixels[2 * n + 1] = center[1];
    }
    return pixels;
  }

  /** Attention weights of a query: heads x samples. */
  attention(cell) {
    const key = cell[0] * this.size[1] + cell[1];
    if (this.cached.key !== key) {
      const weights = this.form === 'weights' ? this.storedRow(key) : this.computedRow(cell, key);
      this.cached = { key, weights };
    }
    return this.cached.weights;
  }

  storedRow(key) {
    const row = new Float32Array(this.heads * this.samples);
    const start = key * row.length;
    for (let head = 0; head < this.heads; head++) {
      let sum = 0;
      const end = (head + 1) * this.samples;
      for (let i = end - this.samples; i < end; i++) sum += row[i] = this.weights[start + i];
      for (let i = end - this.samples; i < end; i++) row[i] /= sum;
    }
    return row;
  }

  computedRow(cell, key) {
    const { heads, samples, channels } = this;
    const row = new Float32Array(heads * samples);
    const q = new Float32Array(channels);
    const perGroup = heads / this.groups;
    for (let head = 0; head < heads; head++) {
      const start = (key * heads + head) * channels;
      for (let c = 0; c < channels; c++) q[c] = HALF[this.q[start + c]];
      const group = Math.floor(head / perGroup);
      let largest = -Infinity;
      for (let n = 0, i = head * samples, j = i * channels; n < samples; n++, i++) {
        let logit = 0;
        for (let c = 0; c < channels; c++) logit += q[c] * this.k[j++];
        if (this.bias) logit += this.biasOf(cell, head, 2 * (group * samples + n));
        row[i] = logit;
        if (logit > largest) largest = logit;
      }
      let sum = 0;
      const end = (head + 1) * samples;
      for (let i = end - samples; i < end; i++) sum += row[i] = Math.exp(row[i] - largest);
      for (let i = end - samples; i < end; i++) row[i] /= sum;
    }
    return row;
  }

  /** Deformable relative position bias: bilinear in the head's table, zero outside of it. */
  biasOf(cell, head, point) {
    const [height, width] = this.table_size;
    const dy = (this.query_y[cell[0]] - this.positions[point]) / 2;
    const dx = (this.query_x[cell[1]] - this.positions[point + 1]) / 2;
    const y = (dy + 1) / 2 * (height - 1);
    const x = (dx + 1) / 2 * (width - 1);
    const top = Math.floor(y);
    const left = Math.floor(x);
    if (top < -1 || left < -1 || top >= height || left >= width) return 0;
    const down = y - top;
    const right = x - left;
    const start = head * height * width + top * width + left;
    const above = top >= 0;
    const below = top + 1 < height;
    let bias = 0;
    if (left >= 0) {
      if (above) bias += (1 - down) * (1 - right) * this.bias[start];
      if (below) bias += down * (1 - right) * this.bias[start + width];
    }
    if (left + 1 < width) {
      if (above) bias += (1 - down) * right * this.bias[start + 1];
      if (below) bias += down * right * this.bias[start + width + 1];
    }
    return bias;
  }

  /** Weights per group: of one head, or the mean over each group's heads (head = null).
   *
   * `values` is heads x samples: attention of a query, or received attention. Groups without the
   * head, and all groups but `group` unless that is null, are absent from the result.
   */
  byGroup(values, head, group) {
    const perGroup = this.heads / this.groups;
    const found = [];
    for (let g = 0; g < this.groups; g++) {
      const own = head === null || Math.floor(head / perGroup) === g;
      if (!own || (group !== null && group !== g)) continue;
      if (head !== null) {
        found.push([g, values.subarray(head * this.samples, (head + 1) * this.samples)]);
        continue;
      }
      const mean = new Float32Array(this.samples);
      for (let h = g * perGroup; h < (g + 1) * perGroup; h++) {
        for (let n = 0; n < this.samples; n++) mean[n] += values[h * this.samples + n] / perGroup;
      }
      found.push([g, mean]);
    }
    return found;
  }

  /** What a query attends to: {y, x, weight, group, sample} of each circle, the weakest first. */
  circles(cell, head, group) {
    const points = this.samplesOf(cell);
    const found = [];
    for (const [g, weights] of this.byGroup(this.attention(cell), head, group)) {
      for (let n = 0; n < this.samples; n++) {
        const i = 2 * (g * this.samples + n);
        found.push({ y: points[i], x: points[i + 1], weight: weights[n], group: g, sample: n });
      }
    }
    return found.sort((a, b) => a.weight - b.weight);
  }
}
