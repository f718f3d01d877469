/* One head: its type with the evidence, and what it reads in the picture of the prompt.
 *
 * value: {layer, head, title, text, source, evidence: [{name, share, even}], about, image (data URL), drawing, view, target,
 * targets, message, failed}. `view` holds the maps of every position: AttentionView in heatkv/views/explore.py, a tile a
 * scale, or LineView in heatkv/views/lines.py, painted over the picture by static/sight.js. So choosing a position needs no
 * request, unless it is in another line. Triggers 'open' and 'probe' with {id, layer, head, target} and what is drawn.
 */
const heatkv = window.heatkv;
const { make, percent } = heatkv;
const find = (name) => element.querySelector(`.${name}`);
const field = find('image');
const picture = field.querySelector('img');
const stretch = find('stretch').querySelector('input');
let view = null;
let position = null; // [row, column] of the chosen position, or null for the mean of all
let large = null; // the tile that was enlarged
let lines = false; // drawn line by line: one map over the picture in place of a tile a scale
const grid = () => (lines ? view.size : view.queries); // rows and columns of positions to choose from
let asked = '';
let of = null; // the head that was asked for last, [layer, head]: its card may be on the way
let basis = ''; // what calibration the card asked for is of

let seen = false; // whether the card is on the screen: what a head reads is drawn when somebody looks at it

/** Ask for the card of the head in view and, if it is to be `read`, for what that head reads in the picture. */
function ask(target = null, read = seen) {
  if (!heatkv.defaults || !heatkv.table) return;
  const wanted = { layer: heatkv.cell.layer, head: heatkv.cell.head, target, ...heatkv.subject() };
  const about = JSON.stringify([wanted, heatkv.view.source, heatkv.view.basis]);
  if (about === asked) return;
  asked = about;
  of = [wanted.layer, wanted.head];
  basis = heatkv.view.basis;
  const numbered = { id: heatkv.number(), ...wanted };
  trigger('open', numbered);
  if (read) trigger('probe', numbered);
}
new IntersectionObserver((entries) => {
  seen = entries.some((entry) => entry.isIntersecting);
  // A large model draws nothing before somebody has asked for something.
  if (seen && props.value && !props.value.view && heatkv.defaults && (heatkv.defaults.auto || asked)) { asked = ''; ask(); }
}, { threshold: 0.25 }).observe(find('card'));
// The card is of the head under the cursor, whoever moved it there.
let soon = null;
heatkv.follow(element, ['cell', 'table'], () => {
  clearTimeout(soon);
  soon = setTimeout(() => {
    if (!props.value) return;
    const [layer, head] = of || [props.value.layer, props.value.head];
    if (layer !== heatkv.cell.layer || head !== heatkv.cell.head || basis !== heatkv.view.basis) ask();
  }, 250);
});
heatkv.bus.addEventListener('open-head', () => { if (element.isConnected) { asked = ''; ask(null, true); } });
find('target').addEventListener('change', (event) => { position = null; ask(Number(event.target.value)); });

function showEvidence(groups) {
  find('evidence').replaceChildren(...groups.flatMap(({ name, share, even }) => {
    const track = make('div', 'track');
    track.append(Object.assign(make('i'), { style: `width:${100 * share}%` }), Object.assign(make('b'), { style: `left:${100 * even}%`, title: 'even attention' }));
    const figure = make('div', 'figure', percent(share));
    figure.append(make('small', '', ` even ${percent(even)}`));
    return [make('div', 'name', name), track, figure];
  }));
}

function take() {
  const value = props.value;
  if (!value) return;
  find('title').textContent = value.title;
  if (value.kind) find('title').append(make('span', 'kind', `: ${value.kind}`));
  find('text').textContent = value.text;
  find('source').textContent = value.source;
  showEvidence(value.evidence || []);
  find('message').hidden = !value.message;
  find('message').textContent = value.message || '';
  find('message').dataset.kind = value.failed ? 'error' : 'info';
  find('reading').hidden = !value.view;
  view = null;
  if (!value.view || !heatkv.safeImage(value.image)) return;
  lines = value.drawing === 'lines';
  view = lines ? { ...value.view, picture: heatkv.unpack(value.view.picture, Uint16Array), condition: heatkv.unpack(value.view.condition, Uint16Array) }
    : { ...value.view, maps: heatkv.unpack(value.view.maps, Uint8Array), shares: heatkv.unpack(value.view.shares, Uint16Array), peaks: heatkv.unpack(value.view.peaks, Float32Array) };
  find('views').classList.toggle('by-line', lines);
  for (const [name, hidden] of [['tiles', lines], ['stretch', lines], ['sight', !lines], ['prompt', !lines]]) find(name).hidden = hidden;
  if (find('target').children.length !== value.targets.length) find('target').replaceChildren(...value.targets.map((k) => Object.assign(document.createElement('option'), { value: k, textContent: heatkv.nameOf(k) })));
  find('target').value = value.target;
  picture.alt = value.about;
  const [rows, columns] = grid();
  if (position && (position[0] >= rows || position[1] >= columns || (lines && position[0] !== view.line))) position = null;
  picture.onload = draw;
  if (picture.src !== value.image) picture.src = value.image;
  if (picture.complete) draw();
}

const nameOf = (scale) => (scale === view.sizes.length - 1 ? 'itself' : heatkv.nameOf(scale));

/** The map of one source: how dark says how much attention one token of it gets, by the same measure in all maps. */
function tile(scale, row, most) {
  const [h, w] = view.sizes[scale];
  const start = view.sizes.slice(0, scale).reduce((sum, [a, b]) => sum + a * b, 0);
  const width = view.sizes.reduce((sum, [a, b]) => sum + a * b, 0);
  const map = view.maps.subarray(row * width + start, row * width + start + h * w);
  const factor = stretch.checked ? 1 : view.peaks[row * view.sizes.length + scale] / most;
  const button = Object.assign(make('button', 'tile'), { type: 'button' });
  button.classList.toggle('large', large === scale);
  const frame = make('span', 'frame');
  frame.style.display = 'block';
  const canvas = Object.assign(document.createElement('canvas'), { width: 192, height: 192 });
  const pen = canvas.getContext('2d');
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, 192, 192);
  pen.globalAlpha = 0.4;
  pen.drawImage(picture, 0, 0, 192, 192);
  pen.globalAlpha = 1;
  map.forEach((v, i) => {
    const t = Math.sqrt((v / 255) * factor); // the root, so that faint attention is seen as well
    pen.fillStyle = `rgba(${Math.round(235 - 75 * t)}, ${Math.round(120 - 70 * t)}, 10, ${(0.9 * t).toFixed(3)})`;
    const [y, x] = [Math.floor(i / w), i % w];
    pen.fillRect((x * 192) / w, (y * 192) / h, 192 / w + 0.5, 192 / h + 0.5);
  });
  frame.append(canvas);
  const own = scale === view.sizes.length - 1;
  const cached = own || heatkv.dynamic || heatkv.kept(props.value.layer, props.value.head, scale);
  if (!cached) { const gone = make('span', 'gone'); gone.append(make('span', '', 'not cached')); frame.append(gone); }
  const share = percent(view.shares[row * view.sizes.length + scale] / 65535);
  const caption = make('span', 'caption');
  caption.append(make('span', '', nameOf(scale)), make('b', '', share));
  button.title = `${share} of the attention on ${nameOf(scale)}${cached ? '' : ', which is not in the cache at this budget'}`;
  button.setAttribute('aria-expanded', String(large === scale));
  button.addEventListener('click', () => { large = large === scale ? null : scale; draw(); find('tiles').children[scale].focus(); });
  button.append(frame, caption);
  return button;
}

function draw() {
  if (!view || !heatkv.table || !picture.complete) return;
  const [rows, columns] = grid();
  const mark = find('mark');
  mark.hidden = !position && !lines;
  const place = position || (lines ? [view.line, 0] : [0, 0]);
  Object.assign(mark.style, { left: `${(100 * place[1]) / columns}%`, top: `${(100 * place[0]) / rows}%`, width: `${position ? 100 / columns : 100}%`, height: `${100 / rows}%` });
  find('mean').setAttribute('aria-pressed', String(!position));
  find('mean').textContent = lines ? 'All of the line' : 'All positions';
  if (lines) drawLine(position ? 1 + position[1] : 0); else drawTiles(position ? 1 + position[0] * columns + position[1] : 0);
}

function drawLine(row) {
  const { layer, head } = props.value;
  heatkv.sight.paint(find('sight'), picture, view, row, (line) => !heatkv.dynamic && !heatkv.kept(layer, head, line + 1));
  heatkv.sight.paintPrompt(find('prompt').lastElementChild, view, row);
  const shares = heatkv.sight.shares(view, row);
  find('prompt').firstElementChild.textContent = `The prompt's ${view.condition.length / (view.queries + 1)} tokens: ${percent(shares[0])}`;
  const names = (k) => (k === view.line + 1 ? 'its own line' : k ? heatkv.nameOf(k) : 'the prompt');
  const ranked = shares.map((share, k) => [share, k]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([share]) => share > 0);
  const gone = heatkv.dynamic ? 0 : shares.reduce((sum, share, k) => sum + (k && k <= view.line && !heatkv.kept(layer, head, k) ? share : 0), 0);
  find('says').textContent = `${position ? `Column ${position[1] + 1} of ${heatkv.nameOf(view.line + 1)}` : `${heatkv.nameOf(view.line + 1)}, mean over its tokens`}: ${ranked.map(([share, k]) => `${percent(share)} on ${names(k)}`).join(', ')}.${gone > 0.0005 ? ` ${percent(gone)} lies on lines that are hatched: not in the cache at ${heatkv.budget} %.` : ''} Darkest is ${percent(view.peaks[row])} on one token. Grey is not drawn yet.${position ? '' : ' Choose a place on the picture to see what it read.'}`;
}

function drawTiles(row) {
  const scales = view.sizes.map((_, k) => k);
  const most = Math.max(1e-9, ...scales.map((k) => view.peaks[row * scales.length + k]));
  find('tiles').replaceChildren(...scales.map((k) => tile(k, row, most)));
  const ranked = scales.map((k) => [view.shares[row * scales.length + k] / 65535, k]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const names = ranked.map(([share, k]) => `${percent(share)} on ${k === scales.length - 1 ? 'itself' : heatkv.nameOf(k)}`);
  find('says').textContent = `${position ? `Row ${position[0] + 1}, column ${position[1] + 1} of ${heatkv.nameOf(view.sizes.length - 1)}` : `${heatkv.nameOf(view.sizes.length - 1)}, mean over all positions`}: ${names.join(', ')}. ${stretch.checked ? 'Every map is shaded up to its own maximum.' : `All maps share one measure: darkest is ${percent(most)} of the attention on one token.`}${position ? '' : ' Choose a position on the picture to see what it reads.'}`;
}

function choose(next) {
  if (!view) return;
  if (lines && next) next = [next[0], Math.min(next[1], next[0] === view.size[0] - 1 ? view.size[1] - 2 : next[1])]; // the last token reads nothing
  position = next;
  if (lines && next && next[0] !== view.line) ask(next[0] + 1); else draw();
}
stretch.addEventListener('change', draw);
field.addEventListener('click', (event) => {
  if (!view) return;
  const area = field.getBoundingClientRect();
  const next = [heatkv.clamp(Math.floor(((event.clientY - area.top) / area.height) * grid()[0]), grid()[0]), heatkv.clamp(Math.floor(((event.clientX - area.left) / area.width) * grid()[1]), grid()[1])];
  choose(position && next.join() === position.join() ? null : next);
});
field.addEventListener('keydown', (event) => {
  const go = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!view || (!go && event.key !== 'Escape')) return;
  event.preventDefault();
  if (!go) return choose(null);
  const [row, column] = position || grid().map((n) => Math.floor(n / 2));
  choose(position ? [heatkv.clamp(Math.max(0, row + go[0]), grid()[0]), heatkv.clamp(Math.max(0, column + go[1]), grid()[1])] : [row, column]);
});
find('mean').addEventListener('click', () => choose(null));

watch('value', take);
take();
heatkv.follow(element, ['table', 'budget', 'edits'], draw);
// Another picture: what was read in the one before is not shown with it, even if it is still to come.
heatkv.bus.addEventListener('drawn', () => { if (element.isConnected && props.value) ask(props.value.target); });
