'use strict';

const LEVELS = 64;  // of weights that discs tell apart
const OPACITY = 0.88;

/** Draws thousands of discs per move, faster than paths: pixel by pixel, in an image of its own. */
class Discs {
  /** Fill the canvas with discs [x, y, part] in its pixels, the first below.
   *
   * A disc's color and its area show its part, from 0 to 1; that of 1 has the given radius.
   */
  draw(context, discs, radius, ratio) {
    const { width, height } = context.canvas;
    if (this.image?.width !== width || this.image.height !== height) {
      this.image = context.createImageData(width, height);
    }
    const { data } = this.image;
    data.fill(0);
    const stamps = this.stampsOf(Math.round(2 * radius) / 2, ratio);
    for (const [x, y, part] of discs) {
      const { side, pixels } = stamps[Math.round(part * LEVELS)];
      const left = Math.round(x - side / 2);
      const top = Math.round(y - side / 2);
      const [from, to] = [Math.max(0, -left), Math.min(side, width - left)];
      for (let row = Math.max(0, -top); row < Math.min(side, height - top); row++) {
        let i = 4 * (row * side + from);
        let j = 4 * ((top + row) * width + left + from);
        for (let column = from; column < to; column++, i += 4, j += 4) {
          const alpha = pixels[i + 3];
          if (alpha === 0) continue;
          const below = data[j + 3] / 255 * (1 - alpha);
          const sum = alpha + below;
          for (let c = 0; c < 3; c++) {
            data[j + c] = (pixels[i + c] * alpha + data[j + c] * below) / sum;
          }
          data[j + 3] = 255 * sum;
        }
      }
    }
    context.putImageData(this.image, 0, 0);
  }

  /** Colors (0 to 255) and alpha (0 to 1) of a disc of each level. */
  stampsOf(radius, ratio) {
    if (this.stamps?.radius === radius && this.stamps.ratio === ratio) return this.stamps.all;
    const all = Array.from({ length: LEVELS + 1 }, (_, level) => {
      const part = level / LEVELS;
      const own = 0.9 * ratio + radius * Math.sqrt(part);
      const line = part > 0.02 ? 0.8 * ratio : 0;
      const side = Math.ceil(2 * own + 2);
      const pixels = new Float32Array(4 * side * side);
      const color = at(WEIGHTS, part);
      for (let row = 0; row < side; row++) {
        for (let column = 0; column < side; column++) {
          const i = 4 * (row * side + column);
          const middle = (side - 1) / 2;
          const distance = Math.hypot(row - middle, column - middle);
          const edge = Math.min(1, Math.max(0, own + 0.5 - distance));
          const white = line && Math.min(1, Math.max(0, distance - (own - line) + 0.5));
          for (let c = 0; c < 3; c++) pixels[i + c] = color[c] + white * (255 - color[c]);
          pixels[i + 3] = edge * OPACITY;
        }
      }
      return { side, pixels };
    });
    this.stamps = { radius, ratio, all };
    return all;
  }
}
