/* The two-level head map: all layers, then the heads of one layer; and the memory that the kept cells take.
 *
 * Draws from the store of its tab alone. Triggers 'open' with {layer, head} when a head is chosen. value: {layer, head}, the
 * head that Python has opened.
 */
const heatkv = window.heatkvOf(element);
const find = (path) => element.querySelector(path);
const overview = find('.overview .field');
const detail = find('.detail .field');
const range = (n) => Array.from({ length: n }, (_, i) => i);
const WORDS = { itself: 'itself', previous: 'previous', between: 'earlier', sinks: 'coarsest', spread: 'spread' };
const OCTAVES = 2; // the colours end at a quarter of even attention and at four times

const mix = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
const css = (rgb) => `rgb(${rgb.join(',')})`;
function palette() {
  return heatkv.dark
    ? { low: [88, 166, 255], mid: [62, 64, 72], high: [255, 158, 61], gone: [24, 25, 31], line: [84, 86, 98], ink: '#d6d3d1' }
    : { low: [33, 102, 172], mid: [231, 229, 228], high: [214, 96, 22], gone: [250, 250, 249], line: [190, 186, 182], ink: '#57534e' };
}
/** Colour at -1 (much less than even) .. 1 (much more). */
const shade = (p, at) => (at < 0 ? mix(p.mid, p.low, Math.min(1, -at)) : mix(p.mid, p.high, Math.min(1, at)));
const score = (l, h, s) => heatkv.table.cells[(l * heatkv.table.heads + h) * heatkv.table.cached + s] / 65535;
function level(l, h, s) {
  const t = heatkv.table;
  if (t.kind === 'none') return 0;
  if (t.kind === 'rank') return 2 * score(l, h, s) - 1;
  return Math.log2(Math.max(score(l, h, s), 1e-6) / t.even[s]) / OCTAVES;
}

function surface(field) {
  const canvas = field.querySelector('canvas');
  const width = field.clientWidth;
  const height = field.clientHeight;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const pen = canvas.getContext('2d');
  pen.scale(ratio, ratio);
  return { pen, width, height };
}

function box(pen, x, y, w, h, gap) {
  pen.beginPath();
  pen.roundRect(x + gap / 2, y + gap / 2, Math.max(1, w - gap), Math.max(1, h - gap), Math.min(3, h / 5));
}

function drawOverview() {
  const t = heatkv.table;
  const p = palette();
  const at = heatkv.step();
  const { pen, width, height } = surface(overview);
  const w = width / t.cached;
  const h = height / t.layers;
  for (const l of range(t.layers)) {
    for (const s of range(t.cached)) {
      const share = heatkv.dynamic ? 0.01 : range(t.heads).filter((head) => heatkv.kept(l, head, s, at)).length / t.heads;
      box(pen, s * w, l * h, w, h, h > 8 ? 2 : 1);
      pen.fillStyle = share ? css(mix(p.mid, p.high, share)) : css(p.gone);
      pen.fill();
      if (!share) hatch(pen, s * w, l * h, w, h, p);
    }
  }
  divide(pen, w, height, p);
}

/** A line between the scales that always stay and those that may go. */
function divide(pen, w, height, p) {
  if (!heatkv.table.sinkScales || !heatkv.table.prunable) return;
  pen.fillStyle = p.ink;
  pen.fillRect(heatkv.table.sinkScales * w - 0.75, 0, 1.5, height);
}

function hatch(pen, x, y, w, h, p) {
  pen.save();
  box(pen, x, y, w, h, h > 8 ? 2 : 1);
  pen.clip();
  pen.strokeStyle = css(p.line);
  pen.lineWidth = 1.5;
  pen.beginPath();
  for (let d = -h; d < w; d += 6) { pen.moveTo(x + d, y + h); pen.lineTo(x + d + h, y); }
  pen.stroke();
  pen.restore();
}

function drawDetail() {
  const t = heatkv.table;
  const p = palette();
  const at = heatkv.step();
  const { layer } = heatkv.cell;
  const { pen, width, height } = surface(detail);
  const w = width / t.cached;
  const h = height / t.heads;
  for (const head of range(t.heads)) {
    for (const s of range(t.cached)) {
      const colour = shade(p, level(layer, head, s));
      const kept = heatkv.kept(layer, head, s, at);
      box(pen, s * w, head * h, w, h, 2);
      pen.fillStyle = css(kept ? colour : mix(p.gone, colour, 0.22)); // what was given up stays visible, faintly
      pen.fill();
      if (!kept) hatch(pen, s * w, head * h, w, h, p);
    }
  }
  divide(pen, w, height, p);
}

function drawNames() {
  const t = heatkv.table;
  const columns = () => range(t.cached).map((s) => {
    const label = document.createElement('span');
    label.append(Object.assign(document.createElement('b'), { textContent: s + 1 }));
    if (t.cached <= 8) label.append(t.sizes[s].join('×'));
    return label;
  });
  for (const row of element.querySelectorAll('.heads-row')) row.replaceChildren(...columns());
  find('.overview .heads-row').classList.toggle('many', t.cached > 9);
  find('.overview .heads-row').querySelectorAll('span').forEach((label) => label.replaceChildren(label.firstChild));
  find('.title').textContent = `Layer ${heatkv.cell.layer + 1}`;
  find('.title').append(Object.assign(document.createElement('small'), { textContent: ` of ${t.layers}: ${t.heads} heads × scales 1 to ${t.cached}; scale ${t.cached + 1} is drawn last and never cached` }));
  find('.names').replaceChildren(...range(t.heads).map((head) => {
    const name = document.createElement('span');
    name.append(`${head + 1}`, Object.assign(document.createElement('em'), { textContent: WORDS[heatkv.typeOf(heatkv.cell.layer, head)] || '' }));
    if (head === heatkv.cell.head) name.className = 'on';
    return name;
  }));
  const side = Math.max(170, Math.min(420, Math.max(t.heads, t.layers / 2) * 34));
  for (const field of [overview, detail]) field.style.minHeight = `${side}px`;
}

function drawCursor() {
  const t = heatkv.table;
  const { layer, head, scale } = heatkv.cell;
  Object.assign(find('.band').style, { top: `calc(${(100 * layer) / t.layers}% - 2px)`, height: `calc(${100 / t.layers}% + 4px)` });
  Object.assign(find('.cursor').style, { left: `${(100 * scale) / t.cached}%`, top: `${(100 * head) / t.heads}%`, width: `${100 / t.cached}%`, height: `${100 / t.heads}%` });
  say(layer, head, scale);
}

function say(layer, head, scale) {
  const t = heatkv.table;
  const name = `Layer ${layer + 1}, head ${head + 1}, scale ${scale + 1} (${t.sizes[scale].join('×')}): `;
  const value = t.kind === 'none' ? 0 : score(layer, head, scale);
  const reads = t.kind === 'none' ? '' : t.kind === 'rank'
    ? scale < t.sinkScales ? '' : `ranked ${Math.round(100 * value)} of 100 for this scale. `
    : `${(100 * value).toFixed(1)} % of its later attention, ${(value / t.even[scale]).toFixed(value < 2 * t.even[scale] ? 2 : 1)} times the even share. `;
  const from = heatkv.keptFrom(layer, head, scale);
  const fate = heatkv.dynamic ? 'What stays of it is decided token by token.'
    : scale < t.sinkScales ? 'A sink scale, always kept.'
    : `${heatkv.kept(layer, head, scale) ? 'Kept' : 'Not in the cache'} at ${heatkv.budget} %${heatkv.fixed ? ' (uploaded schedule)' : from === null ? '' : `; always kept from ${from} % upwards`}.`;
  find('.readout').textContent = name + reads + fate;
}

function drawMemory() {
  const t = heatkv.table;
  const { held, full, peak, fullPeak, paperFactor } = heatkv.memory();
  const highest = fullPeak * Math.max(1, paperFactor);
  const show = paperFactor ? heatkv.showMib : heatkv.showBytes;
  const svg = find('.memory svg');
  const width = Math.max(240, svg.clientWidth);
  const [left, right, top, bottom] = [paperFactor ? 74 : 58, 8, 8, 128];
  const x = (k) => left + ((width - left - right) * k) / Math.max(1, full.length - 1);
  const y = (v) => bottom - ((bottom - top) * v) / highest;
  const node = (name, attributes, text) => {
    const made = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const path = (values) => values.map((v, k) => `${k ? 'L' : 'M'}${x(k).toFixed(1)} ${y(v).toFixed(1)}`).join('');
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    parts.push(node('line', { class: 'grid', x1: left, x2: width - right, y1: y(share * highest), y2: y(share * highest) }));
    parts.push(node('text', { x: left - 6, y: y(share * highest) + 4, 'text-anchor': 'end' }, share ? show(share * highest, highest) : '0'));
  }
  full.forEach((_, k) => parts.push(node('text', { x: x(k), y: bottom + 16, 'text-anchor': 'middle' }, k + 1)));
  parts.push(node('path', { class: 'area', d: `${path(held)}L${x(held.length - 1)} ${bottom}L${left} ${bottom}Z` }));
  parts.push(node('path', { class: 'full', d: path(full) }), node('path', { class: 'kept', d: path(held) }));
  if (paperFactor) {
    for (const [kind, values] of [['full', full], ['kept', held]]) parts.push(node('path', { class: `paper ${kind}`, d: path(values.map((v) => v * paperFactor)) }));
  }
  held.forEach((v, k) => parts.push(node('circle', { cx: x(k), cy: y(v), r: 3 })));
  svg.setAttribute('viewBox', `0 0 ${width} 150`);
  svg.replaceChildren(...parts);
  const figure = paperFactor
    ? `at most ${heatkv.showMib(peak, fullPeak)}; as the papers count ${heatkv.showMib(peak * paperFactor, fullPeak)}`
    : `at most ${heatkv.showPart(peak, fullPeak)}`;
  find('.keys .paper-key').hidden = !paperFactor;
  find('.sinks-key').hidden = !heatkv.table.sinkScales;
  find('.figure').textContent = figure;
  svg.setAttribute('aria-label', `KV cache while scales 1 to ${t.sizes.length} are drawn: ${figure}`);
}

function drawLegend() {
  const p = palette();
  const pen = find('.legend canvas').getContext('2d');
  for (const i of range(160)) { pen.fillStyle = css(shade(p, i / 79.5 - 1)); pen.fillRect(i, 0, 1, 1); }
  const rank = heatkv.table.kind === 'rank';
  find('.legend .scale').hidden = heatkv.table.kind === 'none';
  find('.less').textContent = rank ? 'first to go' : 'read ¼ of even';
  find('.more').textContent = rank ? 'last to go' : '4 × even';
}

function drawKind() {
  find('.dynamic').hidden = !heatkv.dynamic;
  find('.overview h3 small').textContent = heatkv.dynamic ? 'no schedule' : 'share of heads that keep a scale';
}

const drawCells = () => { drawOverview(); drawDetail(); };
const drawBudget = () => { const start = performance.now(); drawCells(); drawMemory(); drawCursor(); heatkv.lastDraw = performance.now() - start; };
const drawAll = () => { drawKind(); drawNames(); drawLegend(); drawBudget(); };
heatkv.follow(element, ['table'], drawAll);
heatkv.follow(element, ['budget'], drawBudget);
heatkv.follow(element, ['cell'], () => { drawNames(); drawDetail(); drawCursor(); });
const redraw = () => { if (heatkv.table) drawAll(); };
new ResizeObserver(redraw).observe(find('.map'));
new MutationObserver(redraw).observe(document.body, { attributes: true, attributeFilter: ['class'] });

function place(field, event, rows) {
  const area = field.getBoundingClientRect();
  const at = (part, n) => heatkv.clamp(Math.floor(part * n), n);
  return [at((event.clientY - area.top) / area.height, rows), at((event.clientX - area.left) / area.width, heatkv.table.cached)];
}
const open = () => { heatkv.set('head', `${heatkv.cell.layer + 1}.${heatkv.cell.head + 1}`); trigger('open', { layer: heatkv.cell.layer, head: heatkv.cell.head }); };
const move = (dl, dh, ds) => heatkv.look(...[[heatkv.cell.layer + dl, heatkv.table.layers], [heatkv.cell.head + dh, heatkv.table.heads], [heatkv.cell.scale + ds, heatkv.table.cached]].map(([v, n]) => Math.max(0, Math.min(n - 1, v))));

overview.addEventListener('click', (event) => { const [layer, scale] = place(overview, event, heatkv.table.layers); heatkv.look(layer, heatkv.cell.head, scale); });
detail.addEventListener('pointermove', (event) => { if (event.pointerType === 'mouse') { const [head, scale] = place(detail, event, heatkv.table.heads); say(heatkv.cell.layer, head, scale); } });
detail.addEventListener('pointerleave', () => { if (heatkv.table) drawCursor(); });
detail.addEventListener('click', (event) => { const [head, scale] = place(detail, event, heatkv.table.heads); heatkv.look(heatkv.cell.layer, head, scale); open(); });
function keys(field, moves, enter) {
  field.addEventListener('keydown', (event) => {
    const go = moves[event.key];
    if (!go && event.key !== 'Enter' && event.key !== ' ') return;
    event.preventDefault();
    if (go) move(...go); else enter();
  });
}
keys(overview, { ArrowUp: [-1, 0, 0], ArrowDown: [1, 0, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1] }, () => detail.focus());
keys(detail, { ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], PageUp: [-1, 0, 0], PageDown: [1, 0, 0] }, open);

const follow = () => {
  const v = props.value;
  if (!v || !heatkv.table || !Number.isInteger(v.layer)) return;
  heatkv.set('head', `${v.layer + 1}.${v.head + 1}`);
  heatkv.look(v.layer, v.head, heatkv.cell.scale);
};
watch('value', follow);
follow();
