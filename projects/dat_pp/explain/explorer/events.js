'use strict';

const overlay = byId('overlay');

/** Pixel [y, x] of the image under the pointer. */
function pixelOf(event) {
  const box = overlay.getBoundingClientRect();
  return [
    (event.clientY - box.top - MARGIN) / view.scale - 0.5,
    (event.clientX - box.left - MARGIN) / view.scale - 0.5,
  ];
}

overlay.addEventListener('pointermove', (event) => {
  if (!state.held || event.buttons) moveTo(pixelOf(event));
});
overlay.addEventListener('pointerdown', (event) => {
  const pixel = pixelOf(event);
  const same = String(state.block.cellOf(pixel)) === String(state.block.cellOf(state.pixel));
  state.held = !(state.held && same);
  moveTo(pixel);
});
overlay.addEventListener('keydown', (event) => {
  const move = {
    ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  }[event.key];
  if (!move) return;
  event.preventDefault();
  const { block } = state;
  const by = event.shiftKey ? 5 : 1;
  const cell = block.cellOf(state.pixel).map((i, axis) => {
    const step = by * move[axis] * Math.sign(block.step[axis]);
    return Math.min(Math.max(i + step, 0), block.inside[axis] - 1);
  });
  state.held = true;
  moveTo(block.centerOf(cell));
});
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { image, block, head } = state;
  const next = (list, i, by) => list[(i + by + list.length) % list.length];
  const by = { '[': -1, ']': 1, ',': -1, '.': 1 }[event.key];
  if (event.key === 'Escape') {
    state.held = false;
    drawQuery();
  } else if (event.key === '[' || event.key === ']') {
    choose({ block: next(image.blocks, image.blocks.indexOf(block), by) });
  } else if (by) {
    const heads = [null, ...Array(block.heads).keys()];
    choose({ head: next(heads, heads.indexOf(head), by), group: null });
  }
});

const systemTheme = matchMedia('(prefers-color-scheme: dark)');

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  byId('theme').textContent = dark ? '☀ Light' : '☾ Dark';
  const style = getComputedStyle(document.documentElement);
  for (const name of ['page', 'text', 'muted', 'line', 'accent']) {
    colors[name] = style.getPropertyValue(`--${name}`).trim();
  }
  if (state.image) refresh();
}

systemTheme.addEventListener('change', () => setTheme(systemTheme.matches));
byId('theme').addEventListener('click', () => {
  setTheme(document.documentElement.dataset.theme !== 'dark');
});

/** An image of the strip, and what choosing it does. */
function stripButton(image) {
  const canvas = make('canvas', { width: 192, height: 136, 'aria-hidden': 'true' });
  const scale = Math.max(192 / image.size[1], 136 / image.size[0]);
  const [height, width] = image.size.map((n) => n * scale);
  canvas.getContext('2d').drawImage(image.bitmap, (192 - width) / 2, (136 - height) / 2, width, height);
  const [best] = image.predictions;
  const texts = [image.name];
  if (best && !best.box && !image.regions) texts.push(best.label);
  const spans = texts.map((text) => make('span', {}, text));
  const button = make('button', { type: 'button', title: texts.join(': ') }, canvas, ...spans);
  button.addEventListener('click', () => show(image));
  return button;
}

function show(image) {
  [...byId('strip').children].forEach((button, i) => {
    button.setAttribute('aria-pressed', String(info.images[i] === image));
  });
  const shown = choose({ image });
  drawOmitted();
  return shown.then(async () => {
    for (const block of image.blocks) {  // the overview fills row by row
      await block.load();
      drawQuery();
    }
  });
}

/** Turn indices of regions into colors. */
function maskOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.naturalWidth, bitmap.naturalHeight);
  const context = canvas.getContext('2d');
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const probe = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const palette = new Map();
  const { data } = pixels;
  for (let i = 0; i < data.length; i += 4) {
    const region = data[i];
    if (region && !palette.has(region)) {
      probe.fillStyle = hue(region - 1);
      probe.fillRect(0, 0, 1, 1);
      palette.set(region, probe.getImageData(0, 0, 1, 1).data);
    }
    data.set(region ? palette.get(region) : [0, 0, 0, 0], i);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

async function decode(source) {
  const bitmap = new Image();
  bitmap.src = source;
  await bitmap.decode();
  return bitmap;
}

async function start() {
  setTheme(systemTheme.matches);
  byId('subtitle').textContent = [info.model, info.note].filter(Boolean).join(' · ');
  for (const image of info.images) {
    image.blocks = image.blocks.map((block) => new Block(block));
    image.bitmap = await decode(image.src);
    if (image.regions) image.mask = maskOf(await decode(image.regions));
  }
  byId('strip').hidden = info.images.length < 2;
  byId('strip').append(...info.images.map(stripButton));
  const shown = show(info.images[0]);
  new ResizeObserver(layout).observe(byId('viewer'));
  window.addEventListener('resize', layout);
  return shown;
}

/** For scripts and tests. */
window.explorer = {
  state,
  view,
  get circles() {
    return circles;
  },
  choose: ({ image = 0, block, ...rest }) => {
    const chosen = info.images[image];
    return choose({
      image: chosen, block: block && chosen.blocks.find((b) => b.name === block), ...rest,
    });
  },
  moveTo,
  ready: start(),
};
