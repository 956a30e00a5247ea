'use strict';

const info = JSON.parse(document.getElementById('info').textContent);
const byId = (id) => document.getElementById(id);
const LAYERS = {
  attention: 'Attention', offsets: 'Offsets', received: 'Received', window: 'Neighborhood',
  predictions: 'Predictions',
};
const state = {
  image: null, block: null, head: null, group: null, pixel: null, held: false,
  layers: { attention: true, offsets: false, received: false, window: false, predictions: false },
};
const view = new View(byId('base'), byId('overlay'));
const overview = new Overview(
  byId('matrix'), (block, head) => choose({ block, head, group: null }),
);
let circles = [];
let pending = 0;
let speaking = 0;
let colors = {};

/** Element with text, attributes and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'style') element.style.cssText = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Radio buttons (or check boxes) that look like chips; options are [value, label, color, name].
 *
 * `name` is for screen readers, and marks the chip.
 */
function chips(id, options, value, onchange, type = 'radio') {
  const holder = byId(id);
  const focused = holder.contains(document.activeElement) ? document.activeElement.value : null;
  holder.replaceChildren(...options.map(([option, label, color, name]) => {
    const input = make('input', { type, name: id, value: String(option) });
    input.checked = type === 'radio' ? option === value : value[option];
    input.addEventListener('change', () => onchange(option, input.checked));
    const mark = color ? [make('b', { style: `background:${color}` })] : [];
    if (name) input.setAttribute('aria-label', name);
    const kind = name ? { class: name.split(' ').pop(), title: name } : {};
    return make('label', {}, input, make('span', kind, ...mark, label));
  }));
  if (focused !== null) holder.querySelector(`[value="${focused}"]`)?.focus();
}

/** Change what is shown; undefined leaves a part as it is. */
function choose({ image, block, head, group }) {
  const other = image && image !== state.image;
  if (other) {
    const name = block?.name ?? (state.image ? state.block.name : image.shown);
    state.pixel = state.image ? relative(state.image, image, state.pixel) : [...image.query];
    state.image = image;
    block = image.blocks.find((b) => b.name === name)
      ?? image.blocks.find((b) => b.name === image.shown);
    if (state.block && block.name !== state.block.name) state.head = state.group = null;
  }
  if (block && block !== state.block) {
    if (state.block && (block.heads !== state.block.heads || block.groups !== state.block.groups)) {
      state.head = state.group = null;
    }
    state.block = block;
  }
  if (head !== undefined) state.head = head;
  if (group !== undefined) state.group = group;
  drawControls();
  if (other) layout();
  else refresh();
  const wanted = state.block;
  return wanted.load().then(() => {
    if (wanted === state.block) refresh();
  });
}

/** The same place in another image. */
function relative(from, to, pixel) {
  return pixel.map((p, axis) => {
    const [low, high] = [to.seen[axis], to.seen[axis + 2]];
    const part = (p - from.seen[axis]) / (from.seen[axis + 2] - from.seen[axis]);
    return low + part * (high - low);
  });
}

function drawControls() {
  const { image, block } = state;
  const stages = [...new Set(image.blocks.map((b) => b.stage))];
  chips('stages', stages.map((stage) => [stage, String(stage)]), block.stage, (stage) => {
    const inside = image.blocks.filter((b) => b.stage === stage);
    choose({ block: inside.filter((b) => b.deformable).pop() ?? inside.pop() });
  });
  const inside = image.blocks.filter((b) => b.stage === block.stage);
  chips(
    'blocks',
    inside.map((b) => [b.name, b.name, null, `${b.name} ${b.deformable ? 'deformable' : 'local'}`]),
    block.name,
    (name) => choose({ block: inside.find((b) => b.name === name) }),
  );
  const heads = Array.from({ length: block.heads }, (_, i) => [i, String(i + 1)]);
  chips('heads', [[null, 'mean'], ...heads], state.head, (head) => choose({ head, group: null }));
  byId('group-field').hidden = block.groups < 2;
  const groups = Array.from({ length: block.groups }, (_, i) => [
    i, String(i + 1), GROUPS[i % GROUPS.length],
  ]);
  const options = [[null, 'all'], ...groups];
  chips('groups', options, state.group, (group) => choose({ group, head: null }));
  const layers = Object.entries(LAYERS).filter(([name]) => ({
    offsets: block.deformable,
    received: block.deformable,
    window: block.stage in image.windows,
    predictions: image.regions !== '' || image.predictions.some((p) => p.box),
  }[name] ?? true));
  chips('layers', layers, state.layers, (name, on) => {
    state.layers[name] = on;
    refresh();
  }, 'checkbox');
}

/** Fit canvases to the page, then draw. */
function layout() {
  const { image } = state;
  const holder = byId('view');
  const space = byId('viewer').clientWidth;
  const most = Math.max(280, window.innerHeight * 0.72);
  // A window may have no width before its first layout.
  const inside = Math.max(40, Math.min(space - 2 * MARGIN, most * image.size[1] / image.size[0]));
  const width = Math.floor(inside) + 2 * MARGIN;
  const height = Math.round(inside * image.size[0] / image.size[1]) + 2 * MARGIN;
  holder.style.width = `${width}px`;
  holder.style.height = `${height}px`;
  view.resize(width, height, image);
  overview.layout(image, byId('matrix-scroll').clientWidth - 4);
  refresh();
}

/** Draw everything. */
function refresh() {
  byId('loading').hidden = state.block.ready;
  view.drawBase(state.image, state.block, state, colors.page);
  drawLegend();
  drawPredictionList();
  drawQuery();
}

/** Draw what depends on the query; the overview follows in the next frame. */
function drawQuery() {
  circles = view.drawOverlay(state.image, state.block, state);
  drawReadout();
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => overview.draw(state, colors));
}

function moveTo(pixel) {
  const [top, left, bottom, right] = state.image.seen;
  state.pixel = [
    Math.min(Math.max(pixel[0], top), bottom), Math.min(Math.max(pixel[1], left), right),
  ];
  drawQuery();
}

function drawReadout() {
  const { block, pixel } = state;
  if (!block.ready) return;
  const cell = block.cellOf(pixel);
  const place = ([y, x]) => `y ${Math.round(y)}, x ${Math.round(x)}`;
  const where = `Row ${cell[0]}, column ${cell[1]} of ${block.size.join(' x ')}; `
    + place(block.centerOf(cell));
  byId('where').textContent = where + (state.held ? ' (held)' : '');
  byId('weight-of').textContent = block.groups > 1 ? 'Weight in its group' : 'Weight';
  const best = circles.slice(-5).reverse();
  byId('strongest').tBodies[0].replaceChildren(...best.map((found) => {
    const meter = make('div', {
      class: 'meter', style: `--part:${100 * found.weight / best[0].weight}%`,
    }, percent(found.weight));
    const group = block.groups > 1 && state.group === null && state.head === null
      ? `, group ${found.group + 1}` : '';
    return make('tr', {}, make('td', {}, place([found.y, found.x]) + group), make('td', {}, meter));
  }));
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const [first] = best;
    if (!first) return;
    const strongest = `${percent(first.weight)} at ${place([first.y, first.x])}`;
    byId('spoken').textContent = `Block ${block.name}. ${where}. Strongest: ${strongest}`;
  }, 600);
}

function drawLegend() {
  const { block, layers, image } = state;
  const gradient = (stops) => `background:linear-gradient(90deg,${stops.join(',')})`;
  const mark = make('i', { class: 'star', 'aria-hidden': 'true' }, '★');
  const entries = [make('span', {}, mark, 'query')];
  const add = (kind, style, text) =>
    entries.push(make('span', {}, make('i', { class: kind, style }), text));
  if (layers.attention) add('ramp', gradient(PLASMA), 'weight, relative to the largest');
  if (block.deformable && layers.offsets) {
    add('ring', '', 'reference point');
    add('rule', `background:${GROUPS[0]}`, 'offset, colored by group');
    if (!layers.attention) {
      add('dot', `background:${GROUPS[0]}`, 'sample; area: attention received');
    }
  }
  if (block.deformable && layers.received) {
    const high = (view.received ?? 0).toFixed(1);
    add('ramp', gradient(INFERNO), `attention received, 0 to ${high} x the mean`);
  }
  if (layers.window && image.windows[block.stage]) {
    const kernel = image.windows[block.stage][0];
    add('frame', `border-color:${QUERY}`, `${kernel} x ${kernel} neighborhood`);
  }
  byId('legend').replaceChildren(...entries);
}

function drawPredictionList() {
  const { image } = state;
  byId('predictions').hidden = !image.predictions.length;
  const boxes = image.regions || image.predictions.some((p) => p.box);
  byId('predictions').querySelector('ol').replaceChildren(...image.predictions.map((found, i) => {
    const mark = boxes ? [make('b', { style: `background:${hue(i)}` })] : [];
    const score = make('span', {}, percent(found.score));
    return make('li', {}, ...mark, make('span', {}, found.label), score);
  }), make('li', { class: 'measure' }, make('span'), make('span', {}, image.measure)));
}

/** Say which blocks the page has not, a line per mixer. */
function drawOmitted() {
  const { omitted, others } = state.image;
  const lines = (blocks) => {
    const mixers = [...new Set(blocks.map(([, mixer]) => mixer))];
    return mixers.map((mixer) => {
      const own = blocks.filter((block) => block[1] === mixer);
      const names = own.map(([name, , size]) => size ? `${name} (${size})` : name);
      return make('li', {}, `${mixer}: ${names.join(', ')}`);
    });
  };
  const count = (blocks) => `${blocks.length} ${blocks.length > 1 ? 'blocks' : 'block'}`;
  const texts = [];
  if (omitted.length) {
    texts.push(`${count(omitted)} left out so that the page stays within ${info.limit} MB`);
  }
  if (others.length) texts.push(`${count(others)} without samples or neighbors to show`);
  if (info.absent.length) texts.push(`images that did not fit: ${info.absent.join(', ')}`);
  const details = byId('omitted');
  details.hidden = !texts.length;
  details.open = omitted.length > 0;
  details.querySelector('summary').textContent = texts.join('; ');
  details.querySelector('ul').replaceChildren(...lines(omitted), ...lines(others));
}
