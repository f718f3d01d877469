/* Pictures A and B: what is asked for is drawn, what is shown says what it is, and only the newest request counts.
 *
 * value: {id, ...} with one of `waiting` (how many are before; 0: it is at a step that takes long), `growing` {a, b} with
 * `step` and `of`, `error` (with `again` where it was only that nobody read for a while), `said`, or the finished pictures
 * `a`, `b` with `score`. With `waiting` goes a `sign`, since the same message once more would not be heard. The value that
 * the page opens with also has `opening`: the recipes drawn, and a strip. Triggers 'draw', 'strip', 'halt' and 'save'.
 */
const heatkv = window.heatkv;
const find = (path) => element.querySelector(path);
const SIDES = ['a', 'b'];
const parts = Object.fromEntries(SIDES.map((side) => [side, { figure: find(`figure.${side}`), image: find(`figure.${side} img`), tag: find(`figure.${side} .tag`), mark: find(`figure.${side} .mark`) }]));
const shown = { a: null, b: null }; // finished pictures, each with `want`: what it is the picture of
const strips = new Map(); // what it is the strip of -> {pictures: [{percent, image}], of: how many there will be, 0: not known yet}
let stripping = null; // the strip that is being drawn; another one ends it
let fulls = null; // the picture with the full cache of a strip that ships: {want, image}
let score = null;
let pending = null; // {id, want: {a, b}, prompt}
let growing = null;
let times = 1; // how often what is pending was asked for
let heard = 0; // when the server last said something of it
let step = null; // the step in view; null: the finished pictures
let said = '';
let kind = 'info';
let number = Date.now();
let typedOver = null; // the prompt that is drawn, while another one is written

const recipes = () => ({ a: heatkv.view.a, b: heatkv.recipe() });
/** What tells a picture from others, as a text. */
const wantOf = (prompt, seed, { policy, percent, source, basis, forget, storage }, sampling = heatkv.view.sampling) => JSON.stringify([prompt, seed, sampling, policy, ...(policy === 'full' ? [] : [percent, source, basis || '']), forget || '', storage || '']);
const want = () => Object.fromEntries(SIDES.map((side) => [side, wantOf(heatkv.view.prompt, heatkv.view.seed, recipes()[side])]));
const stripWant = () => wantOf(heatkv.view.prompt, heatkv.view.seed, { ...heatkv.recipe(), percent: 0 });
const fresh = (side) => Boolean(shown[side]) && shown[side].want === want()[side];
const stripOf = (key) => strips.get(key) || { pictures: [], of: 0 };
const whole = ({ pictures, of }) => of > 0 && pictures.length >= of;
const NEAR = 5; // percent: of a strip that is being drawn, what is further off says little
/** The picture of the strip that comes closest to the budget. */
function nearest() {
  const found = stripOf(stripWant());
  const off = (one) => Math.abs(one.percent - heatkv.budget);
  const best = found.pictures.reduce((one, other) => (!one || off(other) < off(one) ? other : one), null);
  return best && (whole(found) || off(best) <= NEAR) ? best : null;
}

// --- asking ----------------------------------------------------------------------------------------------------------

let soon = null;
/** Draw what the controls say, unless that is what is shown. `time`: the second or third time that it is asked for. */
function request(delay = 120, time = 1) {
  clearTimeout(soon);
  soon = setTimeout(() => {
    if (!heatkv.table || !heatkv.defaults || !element.isConnected || !heatkv.tableFits()) return; // the table asks anew when it comes
    if (fresh('a') && fresh('b') && score) { if (pending) stop(); return show(); }
    const now = want();
    if (pending && pending.want.a === now.a && pending.want.b === now.b) return;
    number += 1;
    pending = { id: number, want: now, prompt: heatkv.view.prompt };
    times = time;
    heard = performance.now();
    growing = null;
    said = '';
    if (!(fresh('a') && fresh('b'))) step = null;
    requestStrip(true);
    trigger('draw', { id: number, ...heatkv.subject(), ...recipes(), has: fresh('a') && shown.a.frames.length > 1 ? shown.a.key : null });
    show();
  }, delay);
}
/** What is pending is not wanted any more. */
function drop() {
  number += 1;
  pending = growing = null;
}
function stop() {
  drop();
  trigger('halt', { id: number, kind: 'draw' });
}
/** Ask once more for what is pending: its answer was lost, on the way or as this page was too busy to read. */
function askAgain() {
  const lost = times >= MOST_ASKED;
  stop();
  if (lost) { said = 'The server does not answer. Press Draw to ask once more.'; kind = 'error'; } else request(0, times + 1);
  show();
}
/** Who draws says so every two seconds. Silence is a lost request (Gradio's stream may close just as it is made) or a server
 * that is too busy to begin, which is given longer every time. */
const SILENCE = 8000;
const MOST_ASKED = 3;
let looked = performance.now();
const watching = setInterval(() => {
  if (!element.isConnected) return clearInterval(watching);
  const now = performance.now();
  if (now - looked > 3000) heard += now - looked; // the page itself slept: what came meanwhile is still to be read
  looked = now;
  if (pending && now - heard > SILENCE * 2 ** (times - 1)) askAgain();
}, 1000);

/** B's pictures along the slider. `shipped`: only if they lie ready, to be seen while the exact picture is drawn. */
function requestStrip(shipped = false) {
  const key = stripWant();
  const b = recipes().b;
  if (whole(stripOf(key)) || b.policy === 'full' || b.source === 'uploaded') return;
  if (!shipped) {
    if (stripping === key) return;
    stripping = key;
    if (!strips.has(key)) strips.set(key, stripOf(key));
    number += 1;
  }
  trigger('strip', { id: number, ...heatkv.subject(), b, key, shipped });
}

// --- hearing ---------------------------------------------------------------------------------------------------------

function take() {
  const value = props.value;
  if (!value) return;
  if (value.opening) return open(value);
  if (value.said) { said = value.said; kind = 'error'; return show(); }
  if (!pending || value.id !== pending.id) return; // somebody asked for something else since
  heard = performance.now();
  if (value.again && times < MOST_ASKED) return askAgain();
  if (value.error) { said = value.error; kind = 'error'; pending = growing = null; } else if (value.a) finish(value, pending); else if (value.waiting !== 0) growing = value; else if (growing && Number.isInteger(growing.waiting)) growing = null; // its turn has come
  show();
}

function finish(value, { want: wants, prompt }) {
  for (const side of SIDES) {
    const same = shown[side] && shown[side].key === value[side].key ? shown[side] : {};
    shown[side] = { ...same, ...value[side], want: wants[side] };
  }
  score = value.score;
  said = value.note || '';
  kind = 'info';
  pending = growing = null;
  if (value.prompt !== prompt && prompt === heatkv.view.prompt) { // the model's own name for it, unless something else is asked for by now
    for (const side of SIDES) shown[side].want = wantOf(value.prompt, value.seed, recipes()[side]);
    heatkv.set({ prompt: value.prompt }, 'look');
  }
  heatkv.emit('drawn', { a: shown.a, b: shown.b });
  showStrip();
  setTimeout(() => { if (!pending) requestStrip(); }, 300);
}

/** What the page opens with was drawn before anybody came. */
function open(value) {
  if (shown.a || !heatkv.defaults) return;
  const wants = Object.fromEntries(SIDES.map((side) => [side, wantOf(value.prompt, value.seed, value.opening[side], {})]));
  if (value.opening.strip) strips.set(wantOf(value.prompt, value.seed, { ...value.opening.b, percent: 0 }, {}), { pictures: value.opening.strip, of: value.opening.strip.length });
  for (const side of SIDES) shown[side] = { ...value[side], want: wants[side] };
  score = value.score;
  heatkv.emit('drawn', { a: shown.a, b: shown.b });
  if (!value.opening.strip) setTimeout(() => { if (!pending) requestStrip(); }, 800);
}

heatkv.bus.addEventListener('mail-strip', (event) => {
  const { key, pictures, full, of } = event.detail;
  if (!element.isConnected || !(strips.has(key) || key === stripWant())) return;
  if (full && key === stripWant()) fulls = { want: want().a, image: full };
  const others = stripOf(key).pictures.filter((one) => !pictures.some((p) => p.percent === one.percent));
  strips.set(key, { pictures: [...others, ...pictures].sort((x, y) => x.percent - y.percent), of });
  if (strips.size > 24) strips.delete(strips.keys().next().value);
  if (key === stripWant()) { showStrip(); show(); }
});
const showStrip = () => heatkv.emit('strip', stripOf(stripWant()).pictures);

// --- showing ---------------------------------------------------------------------------------------------------------

/** What to show on a side: {image, tag, mark, stale, old}. */
function picture(side) {
  const found = shown[side];
  const now = recipes()[side];
  if (growing && growing.growing && growing.growing[side]) return { image: growing.growing[side], tag: heatkv.label(now), mark: `drawing, ${growing.step} of ${growing.of}`, stale: true };
  if (fresh(side)) {
    const frames = found.frames || [];
    const early = step !== null && step < frames.length - 1;
    return { image: early ? frames[step] : found.image, tag: found.label + (early ? ` · after ${heatkv.table.word} ${step + 1}` : '') };
  }
  if (side === 'b') {
    const near = nearest();
    if (near) return near.percent === heatkv.budget ? { image: near.image, tag: heatkv.label(now) } : { image: near.image, tag: heatkv.label({ ...now, percent: near.percent }), mark: `near ${heatkv.budget} %; ${pending ? 'drawing …' : 'release to draw'}`, stale: true };
  }
  if (side === 'a' && fulls && fulls.want === want().a && heatkv.same(now, heatkv.FULL)) return { image: fulls.image, tag: heatkv.label(now) };
  if (!found) return { image: null, tag: heatkv.label(now), mark: pending ? 'drawing …' : 'press Draw', stale: true };
  return { image: found.image, tag: found.label, mark: pending ? `drawing ${heatkv.label(now)} …` : 'not drawn yet', stale: true, old: true };
}

function show() {
  if (!heatkv.table || !heatkv.defaults) return;
  const { mode } = heatkv.view;
  const both = fresh('a') && fresh('b') && !growing && typedOver === null;
  for (const side of SIDES) {
    const { figure, image, tag, mark } = parts[side];
    const now = picture(side);
    if (typedOver !== null) Object.assign(now, { mark: 'another prompt: press Draw', stale: true });
    const difference = side === 'a' && mode === 'difference' && both && score && heatkv.safeImage(score.difference);
    const url = difference ? score.difference : now.image;
    if (heatkv.safeImage(url)) { if (image.getAttribute('src') !== url) image.src = url; } else image.removeAttribute('src');
    image.alt = difference ? 'Where A and B differ, brighter is more' : `Picture ${side.toUpperCase()}: ${heatkv.view.prompt}, ${now.tag}${now.stale ? ' (not what the controls say)' : ''}`;
    tag.textContent = difference ? `A − B · ${score.difference_note}` : `${side.toUpperCase()} · ${now.tag}`;
    mark.hidden = !now.mark;
    mark.textContent = now.mark || '';
    figure.classList.toggle('stale', Boolean(now.stale));
    figure.classList.toggle('old', Boolean(now.old));
  }
  find('.pictures').dataset.mode = mode;
  find('.slide').hidden = find('.edge').hidden = mode !== 'wipe';
  for (const button of find('.modes').children) button.setAttribute('aria-pressed', String(button.dataset.mode === mode));
  find('.unpin').hidden = heatkv.same(heatkv.view.a, heatkv.FULL);
  find('.pin').hidden = heatkv.same(heatkv.view.a, heatkv.recipe());
  document.body.classList.toggle('heatkv-stale', !both); // what is said of the pictures further down is of older ones then
  showStatus(both);
  showSteps(both);
}

function showStatus(both) {
  const line = find('.line');
  const waiting = growing && Number.isInteger(growing.waiting);
  const text = said ? said : waiting ? `In the queue: ${growing.waiting} before you.` : pending ? 'Drawing …' : both && score ? score.words : '';
  line.dataset.kind = said ? kind : 'info';
  find('.line .figure').textContent = both && score && !(said && kind === 'error') ? score.text : '';
  if (find('.line .text').textContent !== text) find('.line .text').textContent = text;
  find('.cancel').hidden = !pending;
}

function showSteps(both) {
  const [a, b] = SIDES.map((side) => (shown[side] && shown[side].frames) || []);
  const count = both && a.length > 1 && a.length === b.length ? a.length : 0;
  const row = find('.frames');
  if (!count) { find('.steps').style.visibility = row.children.length ? 'hidden' : ''; return; }
  find('.steps').hidden = false;
  find('.steps').style.visibility = '';
  while (row.children.length > count) row.lastChild.remove();
  for (const k of heatkv.range(count)) {
    if (!row.children[k]) {
      const button = Object.assign(document.createElement('button'), { type: 'button' });
      button.append(document.createElement('img'), document.createElement('img'), document.createElement('span'));
      button.addEventListener('click', () => { step = k; show(); });
      row.append(button);
    }
    const button = row.children[k];
    [a[k], b[k]].forEach((url, i) => { if (heatkv.safeImage(url) && button.children[i].src !== url) button.children[i].src = url; button.children[i].alt = ''; });
    button.lastChild.textContent = k + 1;
    button.setAttribute('aria-label', `After ${heatkv.table.word} ${k + 1}: A above, B below`);
    button.setAttribute('aria-pressed', String(k === (step ?? count - 1)));
  }
  find('.of').textContent = `How A (above) and B (below) grow, ${heatkv.table.word} by ${heatkv.table.word}. Choose one to see it large.`;
}

// --- operating -------------------------------------------------------------------------------------------------------

find('.cancel').addEventListener('click', () => { stop(); said = 'Cancelled.'; kind = 'info'; show(); });
find('.pin').addEventListener('click', () => {
  if (fresh('b')) shown.a = { ...shown.b };
  score = null;
  heatkv.set({ a: heatkv.recipe() });
});
find('.unpin').addEventListener('click', () => { score = null; heatkv.set({ a: heatkv.FULL }); });
for (const button of find('.modes').children) button.addEventListener('click', () => heatkv.set({ mode: button.dataset.mode }, 'look'));
const slide = find('.slide input');
const cut = (value) => { slide.value = value; find('.pictures').style.setProperty('--cut', `${slide.value}%`); slide.setAttribute('aria-valuetext', `${slide.value} percent A`); };
slide.addEventListener('input', () => cut(slide.value));
const drag = (event) => {
  if (heatkv.view.mode !== 'wipe' || !(event.buttons || event.pointerType === 'mouse')) return;
  const area = parts.b.figure.getBoundingClientRect();
  cut(Math.max(0, Math.min(100, Math.round((100 * (event.clientX - area.left)) / area.width))));
};
for (const name of ['pointermove', 'pointerdown']) find('.pictures').addEventListener(name, drag);
cut(50);

for (const button of find('.menu').children) {
  button.addEventListener('click', () => {
    find('.save').open = false;
    const what = button.dataset.save;
    if (what === 'png' || what === 'schedule') { number += 1; trigger('save', { id: number, what, ...heatkv.subject(), b: heatkv.recipe() }); } else heatkv.emit('save', what);
  });
}
find('.save').addEventListener('keydown', (event) => { if (event.key === 'Escape') { find('.save').open = false; find('summary').focus(); } });

const SEEN = 'heatkv-hello-seen';
const remembered = () => { try { return localStorage.getItem(SEEN) === 'yes'; } catch { return false; } };
find('.hello').hidden = remembered();
find('.forgo').addEventListener('click', () => { find('.hello').hidden = true; try { localStorage.setItem(SEEN, 'yes'); } catch { /* private windows have no storage */ } });

watch('value', take);
const on = (name, run) => heatkv.bus.addEventListener(name, (event) => { if (element.isConnected) run(event); });
on('typing', (event) => { typedOver = event.detail === heatkv.view.prompt ? null : heatkv.view.prompt; show(); });
on('draw', () => {
  typedOver = null;
  said = '';
  stripping = null;
  if (!heatkv.tableFits()) heatkv.emit('want-table'); // it may have got lost
  if (pending) stop(); // its answer may be lost, with the connection or the server: who presses Draw once more asks anew
  request(0);
});
on('view', () => {
  if (typedOver !== heatkv.view.prompt) typedOver = null; // else what is written stays in the field, and is not drawn
  said = '';
  show();
  showStrip();
  request();
});
on('look', show);
on('budget', () => { drop(); step = null; said = ''; show(); });
on('want-table', () => { drop(); show(); }); // the picture of another policy; its table is on the way
let begun = false;
heatkv.follow(element, ['table'], () => {
  if (!begun) {
    begun = true;
    find('.hello .text').textContent = heatkv.defaults ? heatkv.defaults.hello : '';
    take();
    if (heatkv.defaults && !heatkv.defaults.auto) return show();
  }
  if (!heatkv.tableFits()) return show(); // its table is on the way
  show();
  showStrip();
  request();
});
