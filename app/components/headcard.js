/* One head: its type with the evidence, and what it reads in the image of the prompt.
 *
 * value: {layer, head, title, text, source, evidence: [{name, share, even}], about, image (data URL), view, message,
 * failed}. `view` holds the maps of every position (see AttentionView in heatkv/explore.py), so that choosing a
 * position needs no request.
 */
const heatkv = window.heatkv;
const find = (name) => element.querySelector(`.${name}`);
const make = (tag, className, text) => Object.assign(document.createElement(tag), { className: className || '', textContent: text ?? '' });
const percent = (v) => (v >= 0.0995 ? `${Math.round(100 * v)} %` : `${(100 * v).toFixed(1)} %`);
const field = find('image');
const picture = field.querySelector('img');
let view = null;
let position = null; // [row, column] of the chosen position, or null for the mean of all

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
  if (value.view && typeof value.image === 'string' && value.image.startsWith('data:image/png;base64,')) {
    view = { ...value.view, maps: heatkv.unpack(value.view.maps, Uint8Array), shares: heatkv.unpack(value.view.shares, Uint16Array) };
    find('about').textContent = value.about;
    picture.alt = value.about;
    if (position && (position[0] >= view.queries[0] || position[1] >= view.queries[1])) position = null;
    picture.onload = draw;
    picture.src = value.image;
    if (picture.complete) draw();
  }
}

function tile(scale, row) {
  const [h, w] = view.sizes[scale];
  const start = view.sizes.slice(0, scale).reduce((sum, [a, b]) => sum + a * b, 0);
  const width = view.sizes.reduce((sum, [a, b]) => sum + a * b, 0);
  const map = view.maps.subarray(row * width + start, row * width + start + h * w);
  const figure = make('figure', 'tile');
  const frame = make('div', 'frame');
  const canvas = Object.assign(document.createElement('canvas'), { width: 192, height: 192 });
  const pen = canvas.getContext('2d');
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, 192, 192);
  pen.globalAlpha = 0.4;
  pen.drawImage(picture, 0, 0, 192, 192);
  pen.globalAlpha = 1;
  map.forEach((v, i) => {
    const t = v / 255;
    pen.fillStyle = `rgba(${Math.round(235 - 75 * t)}, ${Math.round(120 - 70 * t)}, 10, ${(0.88 * t ** 0.8).toFixed(3)})`;
    const [y, x] = [Math.floor(i / w), i % w];
    pen.fillRect((x * 192) / w, (y * 192) / h, 192 / w + 0.5, 192 / h + 0.5);
  });
  frame.append(canvas);
  const last = scale === view.sizes.length - 1;
  const cached = last || heatkv.kept(props.value.layer, props.value.head, scale);
  if (!cached) { const gone = make('div', 'gone'); gone.append(make('span', '', 'not cached')); frame.append(gone); }
  const share = view.shares[row * view.sizes.length + scale] / 65535;
  const caption = make('figcaption');
  caption.append(make('span', '', last ? 'itself' : `scale ${scale + 1}`), make('b', '', percent(share)));
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `${last ? 'its own scale' : `scale ${scale + 1}`}: ${percent(share)} of the attention${cached ? '' : ', not in the cache at this budget'}`);
  figure.append(frame, caption);
  return figure;
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
  find('tiles').replaceChildren(...scales.map((k) => tile(k, row)));
  const ranked = scales.map((k) => [view.shares[row * scales.length + k] / 65535, k]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const names = ranked.map(([share, k]) => `${percent(share)} on ${k === scales.length - 1 ? 'its own scale' : `scale ${k + 1}`}`);
  find('says').textContent = `${position ? `Row ${position[0] + 1}, column ${position[1] + 1} of the last scale` : 'The last scale, mean over all positions'}: ${names.join(', ')}. Each map is shaded up to its own maximum.${position ? '' : ' Choose a position on the image to see what it reads.'}`;
}

function choose(next) {
  if (!view) return;
  position = next;
  draw();
}
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
heatkv.follow(element, ['table', 'budget'], draw);
