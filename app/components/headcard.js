/* One head: its type with the evidence, and what it reads in the picture of the prompt.
 *
 * value: {layer, head, title, text, source, evidence: [{name, share, even}], about, image (data URL), view, target, targets,
 * message, failed}. `view` holds the maps of every position (AttentionView in heatkv/views/explore.py), so that choosing a
 * position needs no request. Triggers 'open' and 'probe' with {layer, head, target, prompt, seed}.
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
let asked = '';

let seen = false; // whether the card is on the screen: what a head reads is drawn when somebody looks at it

function ask(target = null) {
  if (!heatkv.defaults || !heatkv.table) return;
  const wanted = { layer: heatkv.cell.layer, head: heatkv.cell.head, target, prompt: heatkv.view.prompt, seed: heatkv.view.seed };
  if (JSON.stringify(wanted) === asked) return;
  asked = JSON.stringify(wanted);
  trigger('open', wanted);
  if (seen) trigger('probe', wanted);
}
new IntersectionObserver((entries) => {
  seen = entries.some((entry) => entry.isIntersecting);
  if (seen && props.value && !props.value.view && heatkv.defaults && heatkv.defaults.auto) { asked = ''; ask(); }
}, { threshold: 0.25 }).observe(find('card'));
// The card is of the head under the cursor, whoever moved it there.
let soon = null;
heatkv.follow(element, ['cell', 'table'], () => {
  clearTimeout(soon);
  soon = setTimeout(() => { if (props.value && (props.value.layer !== heatkv.cell.layer || props.value.head !== heatkv.cell.head)) ask(); }, 250);
});
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
  find('text').textContent = value.text;
  find('source').textContent = value.source;
  showEvidence(value.evidence || []);
  find('message').hidden = !value.message;
  find('message').textContent = value.message || '';
  find('message').dataset.kind = value.failed ? 'error' : 'info';
  find('reading').hidden = !value.view;
  view = null;
  if (!value.view || !heatkv.safeImage(value.image)) return;
  view = { ...value.view, maps: heatkv.unpack(value.view.maps, Uint8Array), shares: heatkv.unpack(value.view.shares, Uint16Array), peaks: heatkv.unpack(value.view.peaks, Float32Array) };
  if (find('target').children.length !== value.targets) find('target').replaceChildren(...heatkv.range(value.targets).map((k) => Object.assign(document.createElement('option'), { value: k, textContent: heatkv.nameOf(k) })));
  find('target').value = value.target;
  picture.alt = value.about;
  if (position && (position[0] >= view.queries[0] || position[1] >= view.queries[1])) position = null;
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
  button.setAttribute('aria-label', `${nameOf(scale)}: ${share} of the attention${cached ? '' : ', not in the cache at this budget'}. Enlarge`);
  button.addEventListener('click', () => { large = large === scale ? null : scale; draw(); find('tiles').children[scale].focus(); });
  button.append(frame, caption);
  return button;
}

function draw() {
  if (!view || !heatkv.table || !picture.complete) return;
  const [rows, columns] = view.queries;
  const row = position ? 1 + position[0] * columns + position[1] : 0;
  const mark = find('mark');
  mark.hidden = !position;
  if (position) Object.assign(mark.style, { left: `${(100 * position[1]) / columns}%`, top: `${(100 * position[0]) / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
  find('mean').setAttribute('aria-pressed', String(!position));
  const scales = view.sizes.map((_, k) => k);
  const most = Math.max(1e-9, ...scales.map((k) => view.peaks[row * scales.length + k]));
  find('tiles').replaceChildren(...scales.map((k) => tile(k, row, most)));
  const ranked = scales.map((k) => [view.shares[row * scales.length + k] / 65535, k]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const names = ranked.map(([share, k]) => `${percent(share)} on ${k === scales.length - 1 ? 'itself' : heatkv.nameOf(k)}`);
  find('says').textContent = `${position ? `Row ${position[0] + 1}, column ${position[1] + 1} of ${heatkv.nameOf(view.sizes.length - 1)}` : `${heatkv.nameOf(view.sizes.length - 1)}, mean over all positions`}: ${names.join(', ')}. ${stretch.checked ? 'Every map is shaded up to its own maximum.' : `All maps share one measure: darkest is ${percent(most)} of the attention on one token.`}${position ? '' : ' Choose a position on the picture to see what it reads.'}`;
}

function choose(next) {
  if (!view) return;
  position = next;
  draw();
}
stretch.addEventListener('change', draw);
field.addEventListener('click', (event) => {
  if (!view) return;
  const area = field.getBoundingClientRect();
  const next = [heatkv.clamp(Math.floor(((event.clientY - area.top) / area.height) * view.queries[0]), view.queries[0]), heatkv.clamp(Math.floor(((event.clientX - area.left) / area.width) * view.queries[1]), view.queries[1])];
  choose(position && next.join() === position.join() ? null : next);
});
field.addEventListener('keydown', (event) => {
  const go = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!view || (!go && event.key !== 'Escape')) return;
  event.preventDefault();
  if (!go) return choose(null);
  const [row, column] = position || view.queries.map((n) => Math.floor(n / 2));
  choose(position ? [heatkv.clamp(Math.max(0, row + go[0]), view.queries[0]), heatkv.clamp(Math.max(0, column + go[1]), view.queries[1])] : [row, column]);
});
find('mean').addEventListener('click', () => choose(null));

watch('value', take);
take();
heatkv.follow(element, ['table', 'budget', 'edits'], draw);
heatkv.bus.addEventListener('drawn', () => { if (element.isConnected && props.value && props.value.view) { asked = ''; ask(props.value.target); } });
