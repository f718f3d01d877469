/* The two-level head map: all layers, then the heads of one layer. Cells can be forgotten by hand.
 *
 * Draws from the store of its tab alone; what colours say is in static/colours.js. Triggers 'knock' and 'halt' for the
 * knock-out. value: {layer, head}, the head that Python wants in view.
 */
const heatkv = window.heatkvOf(element);
const colours = heatkv.colours;
const mine = heatkv === window.heatkv; // the published models' map is to look at
const find = (path) => element.querySelector(path);
const overview = find('.overview .field');
const detail = find('.detail .field');
const { range } = heatkv;
let running = null; // the knock-out that is being measured: {id, subject}

function surface(field) {
  const canvas = field.querySelector('canvas');
  const [width, height, ratio] = [field.clientWidth, field.clientHeight, window.devicePixelRatio || 1];
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
function hatch(pen, x, y, w, h, p) {
  pen.save();
  box(pen, x, y, w, h, h > 8 ? 2 : 1);
  pen.clip();
  pen.strokeStyle = colours.css(p.line);
  pen.lineWidth = 1.5;
  pen.beginPath();
  for (let d = -h; d < w; d += 6) { pen.moveTo(x + d, y + h); pen.lineTo(x + d + h, y); }
  pen.stroke();
  pen.restore();
}
function cross(pen, x, y, w, h, p) {
  const r = Math.min(w, h) * 0.24;
  pen.strokeStyle = p.ink;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.moveTo(x + w / 2 - r, y + h / 2 - r); pen.lineTo(x + w / 2 + r, y + h / 2 + r);
  pen.moveTo(x + w / 2 + r, y + h / 2 - r); pen.lineTo(x + w / 2 - r, y + h / 2 + r);
  pen.stroke();
}
/** A line between what always stays and what may go. */
function divide(pen, w, height, p) {
  if (!heatkv.table.sinkScales || !heatkv.table.prunable || heatkv.dynamic || colours.byDistance()) return;
  pen.fillStyle = p.ink;
  pen.fillRect(heatkv.table.sinkScales * w - 0.75, 0, 1.5, height);
}
const byHead = () => colours.kind() === 'knockout'; // then the overview's columns are heads

/** Of a layer and a column of the overview: {share} of its heads that keep it, or how they look on average, {level}. */
function summary(l, c, at) {
  const t = heatkv.table;
  if (byHead()) return { level: colours.level(l, c, 0) };
  const all = range(t.heads);
  if (colours.byDistance()) return { level: all.reduce((sum, head) => sum + colours.level(l, head, c), 0) / t.heads };
  return { share: heatkv.dynamic ? 0.01 : all.filter((head) => heatkv.kept(l, head, c, at)).length / t.heads };
}

function drawOverview() {
  const t = heatkv.table;
  const p = colours.palette();
  const at = heatkv.step();
  const { pen, width, height } = surface(overview);
  const columns = byHead() ? t.heads : t.cached;
  const [w, h] = [width / columns, height / t.layers];
  for (const l of range(t.layers)) {
    for (const c of range(columns)) {
      box(pen, c * w, l * h, w, h, h > 8 ? 2 : 1);
      const { level, share } = summary(l, c, at);
      pen.fillStyle = colours.css(share === undefined ? colours.shade(p, level) : share ? colours.mix(p.mid, p.many, share) : p.gone);
      pen.fill();
      if (share === 0) hatch(pen, c * w, l * h, w, h, p);
    }
  }
  if (!byHead()) divide(pen, w, height, p);
}

function drawDetail() {
  const t = heatkv.table;
  const p = colours.palette();
  const at = heatkv.step();
  const { layer } = heatkv.cell;
  const { pen, width, height } = surface(detail);
  const [w, h] = [width / t.cached, height / t.heads];
  for (const head of range(t.heads)) {
    for (const s of range(t.cached)) {
      const colour = colours.shade(p, colours.level(layer, head, s));
      const kept = colours.held(layer, head, s, at);
      const forgotten = !colours.byDistance() && heatkv.forgotten(layer, head, s);
      box(pen, s * w, head * h, w, h, 2);
      pen.fillStyle = colours.css(kept ? colour : colours.mix(p.gone, colour, 0.22)); // what was given up stays visible, faintly
      pen.fill();
      if (forgotten) cross(pen, s * w, head * h, w, h, p); else if (!kept) hatch(pen, s * w, head * h, w, h, p);
    }
  }
  divide(pen, w, height, p);
}

function drawNames() {
  const t = heatkv.table;
  const label = (k, more) => { const made = document.createElement('span'); made.append(Object.assign(document.createElement('b'), { textContent: k }), more ? ` ${more}` : ''); return made; };
  const [left, right] = element.querySelectorAll('.heads-row');
  const columns = byHead() ? t.heads : t.cached;
  left.replaceChildren(...range(columns).map((s) => label(byHead() ? s + 1 : s || t.word === 'scale' ? colours.columnLabel(s) : '')));
  left.classList.toggle('many', columns > 9 || overview.clientWidth < 11 * columns);
  right.classList.toggle('many', t.cached > (detail.clientWidth < 400 ? 9 : 20));
  right.replaceChildren(...range(t.cached).map((s) => label(colours.columnLabel(s), t.cached <= 8 && t.word === 'scale' ? t.sizes[s].join('×') : '')));
  find('.overview h2').textContent = byHead() ? 'All heads' : 'All layers';
  find('.overview').title = byHead() ? 'A row a layer, a column a head' : colours.byDistance() ? 'A row a layer, a column a distance: the mean of its heads' : `A row a layer, a column a ${t.word}: share of heads that keep it`;
  find('.title').textContent = `Layer ${heatkv.cell.layer + 1}`;
  find('.title').append(Object.assign(document.createElement('small'), { textContent: ` of ${t.layers}: ${colours.byDistance() ? 'a row a head, a column so many lines up' : `a row a head, a column a ${t.word} it may remember`}` }));
  find('.names').replaceChildren(...range(t.heads).map((head) => {
    const name = document.createElement('span');
    name.append(`${head + 1}`, Object.assign(document.createElement('em'), { textContent: heatkv.typeWord(heatkv.typeOf(heatkv.cell.layer, head)) }));
    if (head === heatkv.cell.head) name.className = 'on';
    return name;
  }));
  const side = Math.max(292, Math.min(420, t.heads * 22));
  element.style.setProperty('--map-height', `${side}px`);
  const kind = heatkv.typeOf(heatkv.cell.layer, heatkv.cell.head);
  const button = find('[data-forget="type"]');
  button.disabled = !kind;
  for (const what of ['cell', 'source']) find(`[data-forget="${what}"]`).disabled = colours.byDistance(); // a distance is no cell
  button.title = kind ? `All heads of this type: ${heatkv.typeWords(kind)}` : '';
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
  const from = heatkv.keptFrom(layer, head, scale);
  const fate = heatkv.dynamic ? 'What stays of it is decided token by token.'
    : heatkv.forgotten(layer, head, scale) ? 'Forgotten by hand.'
    : scale < t.sinkScales ? 'Always kept.'
    : `${heatkv.kept(layer, head, scale) ? 'Kept' : 'Not in the cache'} at ${heatkv.budget} %${heatkv.fixed ? ' (your schedule)' : from === null ? '' : `; kept from ${from} % on`}.`;
  const keepers = range(t.heads).filter((h) => heatkv.kept(layer, h, scale)).length;
  const keep = heatkv.dynamic || scale < t.sinkScales ? '' : ` Of this layer's ${t.heads} heads ${keepers} ${keepers === 1 ? 'keeps' : 'keep'} it.`;
  const size = t.word === 'scale' ? ` (${t.sizes[scale].join('×')})` : '';
  find('.readout').setAttribute('aria-live', element.contains(document.activeElement) ? 'polite' : 'off'); // a mouse or the slider would talk without end
  find('.readout').textContent = `Layer ${layer + 1}, head ${head + 1}, ${colours.columnName(scale)}${colours.byDistance() ? '' : size}: ${colours.says(layer, head, scale)}${colours.byDistance() ? '' : fate + keep}`;
}

function drawLegend() {
  const p = colours.palette();
  const bar = (path, colourAt) => { const pen = find(path).getContext('2d'); for (const i of range(120)) { pen.fillStyle = colours.css(colourAt(i / 119)); pen.fillRect(i, 0, 1, 1); } };
  bar('.scale canvas', (at) => colours.shade(p, colours.two() ? 2 * at - 1 : at));
  bar('.share-key canvas', (at) => colours.mix(p.mid, p.many, at));
  find('.legend .scale').hidden = heatkv.table.kind === 'none' && colours.kind() === 'attention';
  [find('.less').textContent, find('.more').textContent] = colours.ends();
  find('.gone-key').hidden = heatkv.dynamic || colours.byDistance();
  find('.share-key').hidden = heatkv.dynamic || colours.byDistance() || byHead();
  find('.sinks-key').hidden = !heatkv.table.sinkScales || heatkv.dynamic || colours.byDistance();
  for (const button of find('.choice').children) {
    const { colour } = button.dataset;
    button.setAttribute('aria-pressed', String(colour === colours.kind()));
    button.hidden = !colours.offers(colour);
  }
  find('.top').hidden = !mine;
}

function drawTools() {
  find('.forget').hidden = !mine || heatkv.dynamic;
  find('.dynamic').hidden = !heatkv.dynamic;
  find('.rests').hidden = !heatkv.edits.count;
  find('.undo').disabled = !heatkv.edits.canUndo;
  find('.redo').disabled = !heatkv.edits.canRedo;
  find('.clear').disabled = !heatkv.edits.count;
  find('[data-forget="source"]').replaceChildren(Object.assign(document.createElement('u'), { textContent: 's' }), heatkv.table.word === 'scale' ? 'cale' : ` ${heatkv.table.word}`);
}

const drawCells = () => { drawOverview(); drawDetail(); };
const drawBudget = () => { const start = performance.now(); drawCells(); drawCursor(); heatkv.lastDraw = performance.now() - start; };
const drawAll = () => { drawNames(); drawLegend(); drawTools(); drawKnock(); drawBudget(); };
heatkv.follow(element, ['table', 'colours', 'look'], drawAll);
heatkv.follow(element, ['budget'], drawBudget);
heatkv.follow(element, ['edits'], () => { drawTools(); drawBudget(); });
heatkv.follow(element, ['cell'], () => { drawNames(); drawDetail(); drawCursor(); });
const redraw = () => { if (heatkv.table) drawAll(); };
new ResizeObserver(redraw).observe(find('.levels'));
new MutationObserver(redraw).observe(document.body, { attributes: true, attributeFilter: ['class'] });

// --- choosing --------------------------------------------------------------------------------------------------------

function place(field, event, rows, columns) {
  const area = field.getBoundingClientRect();
  return [heatkv.clamp(Math.floor(((event.clientY - area.top) / area.height) * rows), rows), heatkv.clamp(Math.floor(((event.clientX - area.left) / area.width) * columns), columns)];
}
const open = () => { if (mine) heatkv.emit('open-head'); }; // the card asks for what it shows
const move = (dl, dh, ds) => heatkv.look(...[[heatkv.cell.layer + dl, heatkv.table.layers], [heatkv.cell.head + dh, heatkv.table.heads], [heatkv.cell.scale + ds, heatkv.table.cached]].map(([v, n]) => Math.max(0, Math.min(n - 1, v))));

overview.addEventListener('click', (event) => {
  const [layer, column] = place(overview, event, heatkv.table.layers, byHead() ? heatkv.table.heads : heatkv.table.cached);
  if (byHead()) { heatkv.look(layer, column, heatkv.cell.scale); open(); } else heatkv.look(layer, heatkv.cell.head, column);
});
detail.addEventListener('pointermove', (event) => { if (event.pointerType === 'mouse') { const [head, scale] = place(detail, event, heatkv.table.heads, heatkv.table.cached); say(heatkv.cell.layer, head, scale); } });
detail.addEventListener('pointerleave', () => { if (heatkv.table) drawCursor(); });

// A long press forgets the cell under the finger; the click that follows it is none.
let pressed = null;
let held = false;
detail.addEventListener('pointerdown', (event) => {
  held = false;
  clearTimeout(pressed);
  if (event.button) return; // a menu, or scrolling
  pressed = setTimeout(() => {
    const [head, scale] = place(detail, event, heatkv.table.heads, heatkv.table.cached);
    held = true;
    heatkv.look(heatkv.cell.layer, head, scale);
    forget('cell');
  }, 550);
});
for (const name of ['pointerup', 'pointercancel', 'pointerleave']) detail.addEventListener(name, () => clearTimeout(pressed));
detail.addEventListener('contextmenu', (event) => { if (held) event.preventDefault(); });
detail.addEventListener('click', (event) => {
  if (held) return;
  const [head, scale] = place(detail, event, heatkv.table.heads, heatkv.table.cached);
  heatkv.look(heatkv.cell.layer, head, scale);
  open();
});

// --- forgetting ------------------------------------------------------------------------------------------------------

function cellsOf(what) {
  const { layer, head, scale } = heatkv.cell;
  if (colours.byDistance() && (what === 'cell' || what === 'source')) return [];
  if (what === 'cell') return [[layer, head, scale]];
  if (what === 'head') return heatkv.edits.headCells(layer, head);
  if (what === 'layer') return heatkv.edits.layerCells(layer);
  if (what === 'source') return heatkv.edits.sourceCells(scale);
  const kind = heatkv.typeOf(layer, head);
  return kind ? range(heatkv.table.layers).flatMap((l) => range(heatkv.table.heads).filter((h) => heatkv.typeOf(l, h) === kind).flatMap((h) => heatkv.edits.headCells(l, h))) : [];
}
const forget = (what) => { if (mine) heatkv.forget(cellsOf(what)); };
for (const button of element.querySelectorAll('[data-forget]')) button.addEventListener('click', () => forget(button.dataset.forget));
find('.undo').addEventListener('click', () => heatkv.undo());
find('.redo').addEventListener('click', () => heatkv.redo());
find('.clear').addEventListener('click', () => heatkv.setEdits(''));

const FORGET = { x: 'cell', h: 'head', l: 'layer', s: 'source', t: 'type', Delete: 'cell' };
function keys(field, moves, enter) {
  field.addEventListener('keydown', (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const go = moves[event.key];
    if (mine && (event.ctrlKey || event.metaKey) && 'zy'.includes(key)) { event.preventDefault(); if (key === 'y' || event.shiftKey) heatkv.redo(); else heatkv.undo(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (go) move(...go); else if (event.key === 'Enter' || event.key === ' ') enter(); else if (FORGET[key] && mine) forget(FORGET[key]); else return;
    event.preventDefault();
  });
}
if (!mine) { // nothing is opened or forgotten here
  detail.setAttribute('aria-label', 'Heads of one layer. Arrows move, Page Up and Page Down change the layer.');
  detail.removeAttribute('aria-keyshortcuts');
}
keys(overview, { ArrowUp: [-1, 0, 0], ArrowDown: [1, 0, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1] }, () => detail.focus());
keys(detail, { ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], PageUp: [-1, 0, 0], PageDown: [1, 0, 0] }, open);

// --- colours and the knock-out ---------------------------------------------------------------------------------------

for (const button of find('.choice').children) button.addEventListener('click', () => heatkv.set({ colour: button.dataset.colour }, 'look'));
function drawKnock() {
  const here = colours.knockedHere();
  find('.knock').hidden = !mine || colours.kind() !== 'knockout' || (Boolean(here) && here.done === here.of);
  find('.measure').hidden = running !== null;
  find('.stop').hidden = running === null;
  find('.knock i').style.width = here ? `${(100 * here.done) / here.of}%` : '0';
  find('.knock .text').textContent = !running ? '' : here && Number.isInteger(here.waiting) ? `${here.waiting} before you` : here ? `${here.done} of ${here.of} heads` : 'starting …';
}
find('.measure').addEventListener('click', () => { running = { id: heatkv.number(), subject: heatkv.subjectKey() }; trigger('knock', { ...heatkv.subject(), ...running }); drawKnock(); });
find('.stop').addEventListener('click', () => { trigger('halt', { id: heatkv.number(), kind: 'knock' }); running = null; drawKnock(); });
heatkv.bus.addEventListener('view', () => { if (element.isConnected && running !== null && running.subject !== heatkv.subjectKey()) find('.stop').click(); });
heatkv.bus.addEventListener('mail-knocked', (event) => {
  if (!element.isConnected || !running || event.detail.id !== running.id) return;
  if (event.detail.error) { running = null; drawKnock(); find('.knock .text').textContent = event.detail.error; return; }
  if (event.detail.done === event.detail.of) running = null;
  colours.take({ knocked: event.detail });
});
heatkv.bus.addEventListener('drawn', (event) => { if (element.isConnected) colours.take({ kept: event.detail.b.kept ? heatkv.unpack(event.detail.b.kept, Uint16Array) : null }); });
heatkv.bus.addEventListener('save', (event) => { if (element.isConnected && mine) window.heatkvSaves[event.detail]?.(heatkv); });

const follow = () => { const v = props.value; if (v && heatkv.table && Number.isInteger(v.layer)) heatkv.look(v.layer, v.head, heatkv.cell.scale); };
watch('value', follow);
