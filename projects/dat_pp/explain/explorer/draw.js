'use strict';

// Stops of the colors of matplotlib's plasma and inferno, as in the figures.
const PLASMA = ['#0d0887', '#5402a3', '#8b0aa5', '#b93289', '#db5c68', '#f48849', '#febc2a', '#f0f921'];
const INFERNO = ['#000004', '#280b54', '#65156e', '#9f2a63', '#d44842', '#f57d15', '#fac127', '#fcffa4'];
// Okabe and Ito's colors, which color-blind people tell apart.
const GROUPS = ['#e69f00', '#56b4e9', '#009e73', '#f0e442', '#d55e00', '#cc79a7', '#0072b2', '#ffffff'];
const QUERY = '#00e5ff';

/** 256 colors [r, g, b] between stops. */
function ramp(stops) {
  const parsed = stops.map((s) => [1, 3, 5].map((i) => parseInt(s.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const place = i / 255 * (parsed.length - 1);
    const low = Math.min(Math.floor(place), parsed.length - 2);
    return [0, 1, 2].map((c) =>
      Math.round(parsed[low][c] + (place - low) * (parsed[low + 1][c] - parsed[low][c])));
  });
}

const WEIGHTS = ramp(PLASMA);
const HEAT = ramp(INFERNO);
const css = ([r, g, b], alpha = 1) => `rgb(${r} ${g} ${b} / ${alpha})`;
const at = (colors, part) => colors[Math.max(0, Math.min(255, Math.round(255 * part)))];

/** Color of prediction i: hues that differ from those before. */
const hue = (i) => `hsl(${(i * 137.5 + 210) % 360} 75% 60%)`;

/** Add Gaussians at points to a grid of `height` x `width`, in cells of it. */
function splat(grid, height, width, y, x, sigmaY, sigmaX, weight) {
  const top = Math.max(0, Math.ceil(y - 3 * sigmaY));
  const bottom = Math.min(height - 1, Math.floor(y + 3 * sigmaY));
  const left = Math.max(0, Math.ceil(x - 3 * sigmaX));
  const right = Math.min(width - 1, Math.floor(x + 3 * sigmaX));
  const across = [];
  for (let j = left; j <= right; j++) across.push(Math.exp(-0.5 * ((j - x) / sigmaX) ** 2));
  for (let i = top; i <= bottom; i++) {
    const down = weight * Math.exp(-0.5 * ((i - y) / sigmaY) ** 2);
    for (let j = left; j <= right; j++) grid[i * width + j] += down * across[j - left];
  }
}

const MARGIN = 14;  // CSS pixels around the image, for circles at its border

/** Draws an image and its layers; pixel x, a center, is at (x + 0.5) * scale, beside a margin. */
class View {
  constructor(base, overlay) {
    this.base = base.getContext('2d');
    this.overlay = overlay.getContext('2d');
    this.discs = new Discs();
  }

  /** Fit the canvases to a box of CSS pixels. */
  resize(width, height, image) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    for (const { canvas } of [this.base, this.overlay]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    this.ratio = ratio;
    this.scale = (width - 2 * MARGIN) / image.size[1];
  }

  place(y, x) {
    return [(x + 0.5) * this.scale, (y + 0.5) * this.scale];
  }

  begin(context) {
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    context.translate(MARGIN, MARGIN);
    context.globalAlpha = 1;
  }

  /** Everything that does not depend on the query. */
  drawBase(image, block, state, shade) {
    const context = this.base;
    this.begin(context);
    const [height, width] = image.size.map((n) => n * this.scale);
    context.imageSmoothingQuality = 'high';
    context.drawImage(image.bitmap, 0, 0, width, height);
    context.fillStyle = shade;
    context.globalAlpha = state.layers.predictions ? 0.15 : 0.4;
    context.fillRect(0, 0, width, height);
    context.globalAlpha = 0.85;
    const [top, left, bottom, right] = image.seen.map((p) => (p + 0.5) * this.scale);
    context.beginPath();
    context.rect(0, 0, width, height);
    context.rect(left, top, right - left, bottom - top);
    context.fill('evenodd');
    context.globalAlpha = 1;
    if (block.ready && block.deformable) {
      if (state.layers.received) this.drawReceived(image, block, state);
      if (state.layers.offsets) this.drawOffsets(block, state);
    }
    if (state.layers.predictions) this.drawPredictions(image, width, height);
  }

  drawPredictions(image, width, height) {
    const context = this.base;
    if (image.mask) {
      context.globalAlpha = 0.45;
      context.drawImage(image.mask, 0, 0, width, height);
      context.globalAlpha = 1;
    }
    context.lineWidth = 2;
    context.font = '600 12px system-ui, sans-serif';
    const boxes = image.predictions.flatMap(({ box }, i) =>
      box ? [[i, ...box.map((edge) => edge * this.scale)]] : []);
    for (const [i, top, left, bottom, right] of boxes) {
      context.strokeStyle = hue(i);
      context.strokeRect(left, top, right - left, bottom - top);
    }
    const taken = [];
    for (const [i, top, left] of boxes) {
      const found = image.predictions[i];
      const text = `${found.label} ${percent(found.score)}`;
      const wide = context.measureText(text).width + 8;
      const x = Math.max(0, Math.min(left - 1, width - wide));
      let y = top >= 17 ? top - 17 : top;
      while (taken.some(([b, a, w]) => Math.abs(b - y) < 17 && a < x + wide && x < a + w)) y += 17;
      taken.push([y, x, wide]);
      context.fillStyle = hue(i);
      context.fillRect(x, y, wide, 17);
      context.fillStyle = '#000';
      context.fillText(text, x + 4, y + 13);
    }
  }

  /** Distance of reference points in CSS pixels. */
  spacing(block) {
    return Math.min(...[0, 1].map((axis) =>
      Math.abs(block.step[axis]) * block.size[axis] / block.grid[axis])) * this.scale;
  }

  drawOffsets(block, state) {
    const context = this.base;
    const shown = block.byGroup(block.received, state.head, state.group);
    const most = Math.min(9, Math.max(2, 0.2 * this.spacing(block)));
    for (const [group, received] of shown) {
      const color = GROUPS[group % GROUPS.length];
      for (let n = 0; n < block.samples; n++) {
        const i = 2 * (group * block.samples + n);
        const [x0, y0] = this.place(block.origins[2 * n], block.origins[2 * n + 1]);
        const [x1, y1] = this.place(block.points[i], block.points[i + 1]);
        context.beginPath();
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
        context.strokeStyle = '#0009';
        context.lineWidth = 2.6;
        context.stroke();
        context.strokeStyle = color;
        context.lineWidth = 1.4;
        context.stroke();
        circle(context, x0, y0, Math.min(3, most), null, '#fff', 2.4);
        circle(context, x0, y0, Math.min(3, most), null, '#333', 1);
        if (state.layers.attention) continue;  // its circle is there
        const radius = most * Math.sqrt(Math.min(9, Math.max(0.05, received[n]))) / 1.5;
        circle(context, x1, y1, Math.max(1, radius), color, '#000', 0.8);
      }
    }
  }

  /** Density of received attention, as `dat_pp.explain.heat_map` makes it. */
  drawReceived(image, block, state) {
    const [top, left, bottom, right] = image.seen;
    const longer = Math.max(bottom - top, right - left);
    const height = Math.max(2, Math.round(120 * (bottom - top) / longer));
    const width = Math.max(2, Math.round(120 * (right - left) / longer));
    const perY = height / (bottom - top);
    const perX = width / (right - left);
    const [sigmaY, sigmaX] = [0, 1].map((axis) =>
      0.4 * Math.abs(block.step[axis]) * block.size[axis] / block.grid[axis]);
    const grid = new Float32Array(height * width);
    for (const [group, received] of block.byGroup(block.received, state.head, state.group)) {
      for (let n = 0; n < block.samples; n++) {
        const i = 2 * (group * block.samples + n);
        const y = (block.points[i] - top) * perY - 0.5;
        const x = (block.points[i + 1] - left) * perX - 0.5;
        splat(grid, height, width, y, x, sigmaY * perY, sigmaX * perX, received[n]);
      }
    }
    const mean = grid.reduce((a, b) => a + b, 0) / grid.length || 1;
    const high = Math.max(2 * mean, grid.reduce((a, b) => Math.max(a, b), 0));
    this.base.globalAlpha = 0.68;
    this.base.drawImage(
      colored(grid, height, width, high, HEAT),
      (left + 0.5) * this.scale, (top + 0.5) * this.scale,
      (right - left) * this.scale, (bottom - top) * this.scale,
    );
    this.base.globalAlpha = 1;
    this.received = high / mean;
  }

  /** Radius of the largest circle, so that all together cover a part of the image. */
  largestRadius(image, circles, largest) {
    const total = circles.reduce((sum, { weight }) => sum + weight / largest, 0);
    const area = image.size[0] * image.size[1] * this.scale ** 2;
    return Math.min(19, Math.max(3, Math.sqrt(0.3 * area / (Math.PI * total))));
  }

  /** The query, and what it attends to. Returns the circles. */
  drawOverlay(image, block, state) {
    const context = this.overlay;
    this.begin(context);
    if (!block.ready) return [];
    const cell = block.cellOf(state.pixel);
    const circles = block.circles(cell, state.head, state.group);
    const largest = circles.length ? circles[circles.length - 1].weight || 1 : 1;
    const [stepY, stepX] = block.step.map((step) => Math.abs(step) * this.scale);
    if (state.layers.attention && block.deformable) {
      const radius = this.largestRadius(image, circles, largest) * this.ratio;
      this.discs.draw(context, circles.map(({ y, x, weight }) => {
        const [px, py] = this.place(y, x);
        return [(px + MARGIN) * this.ratio, (py + MARGIN) * this.ratio, weight / largest];
      }), radius, this.ratio);
    } else if (state.layers.attention) {
      for (const { y, x, weight } of circles) {
        const [px, py] = this.place(y, x);
        context.fillStyle = css(at(WEIGHTS, weight / largest), 0.82);
        context.fillRect(px - stepX / 2, py - stepY / 2, stepX + 0.4, stepY + 0.4);
      }
    }
    const local = image.windows[block.stage];
    if (state.layers.window && local) {
      const [kernel, ...padded] = local;
      const [y0, x0] = block.centerOf(block.windowOf(cell, kernel, padded));
      const [left, top] = this.place(y0, x0);
      const [dx, dy] = [Math.sign(block.step[1]) * stepX, Math.sign(block.step[0]) * stepY];
      context.lineWidth = 4;
      context.strokeStyle = '#000a';
      context.strokeRect(left - dx / 2, top - dy / 2, kernel * dx, kernel * dy);
      context.lineWidth = 2;
      context.strokeStyle = QUERY;
      context.strokeRect(left - dx / 2, top - dy / 2, kernel * dx, kernel * dy);
    }
    star(context, ...this.place(...block.centerOf(cell)), state.held ? 12 : 10);
    return circles;
  }
}

function circle(context, x, y, radius, fill, stroke, width) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  if (fill) {
    context.fillStyle = fill;
    context.fill();
  }
  if (stroke) {
    context.strokeStyle = stroke;
    context.lineWidth = width;
    context.stroke();
  }
}

function star(context, x, y, radius) {
  context.beginPath();
  for (let i = 0; i < 10; i++) {
    const reach = i % 2 ? radius * 0.42 : radius;
    const angle = Math.PI * (i / 5 - 0.5);
    context.lineTo(x + reach * Math.cos(angle), y + reach * Math.sin(angle));
  }
  context.closePath();
  context.fillStyle = QUERY;
  context.strokeStyle = '#000';
  context.lineWidth = 1.5;
  context.fill();
  context.stroke();
}

/** A canvas that shows a grid of numbers in colors, `high` as the last one. */
function colored(grid, height, width, high, colors) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d');
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < grid.length; i++) {
    pixels.data.set(at(colors, grid[i] / high), 4 * i);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

const percent = (part) => `${(100 * part).toFixed(part < 0.00995 ? 2 : part < 0.0995 ? 1 : 0)} %`;
