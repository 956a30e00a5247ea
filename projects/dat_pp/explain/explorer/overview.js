'use strict';

const THUMBNAIL = 24;  // cells of its longer side

/** A row per block, a column per head: where the query attends, small. */
class Overview {
  constructor(canvas, onchoice) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.places = [];
    canvas.addEventListener('click', (event) => {
      const box = canvas.getBoundingClientRect();
      const row = Math.floor((event.clientY - box.top) / this.high);
      const head = Math.floor((event.clientX - box.left - this.margin) / this.wide);
      const block = this.blocks[row];
      if (block && head < block.heads) onchoice(block, head >= 0 ? head : null);
    });
  }

  /** Fit to a width in CSS pixels. */
  layout(image, width) {
    this.image = image;
    this.blocks = image.blocks;
    this.margin = width < 480 ? 36 : 62;
    const heads = Math.max(...this.blocks.map((block) => block.heads));
    const ratio = image.size[0] / image.size[1];
    this.wide = Math.max(16, Math.min(84, Math.floor((width - this.margin) / heads)));
    this.high = Math.round((this.wide - 4) * Math.min(1.5, Math.max(0.5, ratio))) + 4;
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    const size = [this.margin + heads * this.wide, this.blocks.length * this.high];
    [this.canvas.width, this.canvas.height] = size.map((n) => Math.round(n * this.ratio));
    [this.canvas.style.width, this.canvas.style.height] = size.map((n) => `${n}px`);
    this.rows = Math.max(4, Math.round(THUMBNAIL * Math.min(1, ratio)));
    this.columns = Math.max(4, Math.round(THUMBNAIL * Math.min(1, 1 / ratio)));
  }

  draw(state, colors) {
    const { context } = this;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.font = '12px system-ui, sans-serif';
    context.textBaseline = 'middle';
    const roomy = this.high > 24 && this.margin > 50;
    this.blocks.forEach((block, row) => {
      const top = row * this.high;
      const chosen = block === state.block;
      context.fillStyle = chosen ? colors.accent : colors.text;
      context.font = `${chosen ? '700 ' : ''}12px system-ui, sans-serif`;
      context.fillText(block.name, 2, top + this.high / 2 - (roomy ? 6 : 0));
      if (roomy) {
        context.fillStyle = colors.muted;
        context.font = '10px system-ui, sans-serif';
        context.fillText(block.deformable ? 'deformable' : 'local', 2, top + this.high / 2 + 8);
      }
      if (block.ready) this.drawRow(block, state.pixel, top);
      for (let head = 0; head < block.heads; head++) {
        const left = this.margin + head * this.wide;
        const active = chosen && (state.head === null || state.head === head);
        context.lineWidth = active ? 2 : 1;
        context.strokeStyle = active ? colors.accent : colors.line;
        context.strokeRect(left + 1, top + 1, this.wide - 3, this.high - 3);
      }
    });
  }

  drawRow(block, pixel, top) {
    const { rows, columns } = this;
    const wide = columns * block.heads;
    const pixels = new ImageData(wide, rows);
    const cell = block.cellOf(pixel);
    const weights = block.attention(cell);
    const points = block.samplesOf(cell);
    const perGroup = block.heads / block.groups;
    const perY = rows / this.image.size[0];
    const perX = columns / this.image.size[1];
    const counts = block.deformable ? block.grid : block.size;
    const sigma = [0, 1].map((axis) => {
      const spacing = Math.abs(block.step[axis]) * block.size[axis] / counts[axis];
      return Math.max(0.45, 0.4 * spacing * (axis ? perX : perY));
    });
    const grid = new Float32Array(rows * columns);
    for (let head = 0; head < block.heads; head++) {
      grid.fill(0);
      const first = Math.floor(head / perGroup) * block.samples;
      let largest = 0;
      for (let n = 0; n < block.samples; n++) {
        largest = Math.max(largest, weights[head * block.samples + n]);
      }
      for (let n = 0; n < block.samples; n++) {
        const weight = weights[head * block.samples + n];
        if (weight < 0.01 * largest) continue;  // not seen
        const y = (points[2 * (first + n)] + 0.5) * perY - 0.5;
        const x = (points[2 * (first + n) + 1] + 0.5) * perX - 0.5;
        splat(grid, rows, columns, y, x, ...sigma, weight);
      }
      let high = 1e-12;
      for (const value of grid) if (value > high) high = value;
      for (let i = 0; i < grid.length; i++) {
        const row = Math.floor(i / columns);
        const to = 4 * (row * wide + head * columns + i % columns);
        const color = HEAT[Math.round(255 * grid[i] / high)];
        pixels.data[to] = color[0];
        pixels.data[to + 1] = color[1];
        pixels.data[to + 2] = color[2];
        pixels.data[to + 3] = 255;
      }
    }
    if (this.buffer?.width !== wide || this.buffer.height !== rows) {
      this.buffer = new OffscreenCanvas(wide, rows);
    }
    this.buffer.getContext('2d').putImageData(pixels, 0, 0);
    for (let head = 0; head < block.heads; head++) {
      this.context.drawImage(
        this.buffer, head * columns, 0, columns, rows,
        this.margin + head * this.wide + 2, top + 2, this.wide - 5, this.high - 5,
      );
    }
  }
}
