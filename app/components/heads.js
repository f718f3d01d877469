/* Every head as a small picture of its row of the map: sorted, filtered by type, and a way to it. */
const heatkv = window.heatkv;
const colours = heatkv.colours;
const find = (path) => element.querySelector(path);
const MOST = 256; // of a large model the first ones of the order; the map holds them all
const strength = (l, h) => heatkv.range(heatkv.table.cached).reduce((sum, s) => sum + (colours.level(l, h, s) ?? -9), 0);

function heads() {
  const t = heatkv.table;
  const wanted = find('.type').value;
  const all = heatkv.range(t.layers).flatMap((l) => heatkv.range(t.heads).map((h) => ({ l, h, type: heatkv.typeOf(l, h) || '' })));
  const chosen = all.filter((one) => !wanted || one.type === wanted);
  const order = find('.order').value;
  if (order === 'type') chosen.sort((a, b) => a.type.localeCompare(b.type) || a.l - b.l || a.h - b.h);
  if (order === 'colour') chosen.sort((a, b) => strength(b.l, b.h) - strength(a.l, a.h));
  return { all, chosen };
}

function paint(canvas, l, h) {
  const t = heatkv.table;
  const p = colours.palette();
  canvas.width = t.cached;
  canvas.height = 1;
  const pen = canvas.getContext('2d');
  for (const s of heatkv.range(t.cached)) {
    const colour = colours.shade(p, colours.level(l, h, s));
    pen.fillStyle = colours.css(colours.held(l, h, s) ? colour : colours.mix(p.gone, colour, 0.22));
    pen.fillRect(s, 0, 1, 1);
  }
}

let shown = ''; // the heads in order, with their types
function show() {
  const t = heatkv.table;
  if (!find('.type').children[1]) find('.type').append(...t.typeNames.map((name) => Object.assign(document.createElement('option'), { value: name, textContent: heatkv.typeWords(name) })));
  const { all, chosen } = heads();
  const names = chosen.slice(0, MOST).map(({ l, h, type }) => `${l}.${h} ${type}`).join();
  if (names === shown) return repaint(); // or who is among them with the keyboard would be thrown out
  shown = names;
  find('.count').textContent = `${chosen.length} of ${all.length}${chosen.length > MOST ? `, the first ${MOST}` : ''}`;
  find('.grid').replaceChildren(...chosen.slice(0, MOST).map(({ l, h, type }) => {
    const button = Object.assign(document.createElement('button'), { type: 'button', tabIndex: -1, title: heatkv.typeWords(type) });
    button.dataset.head = `${l}.${h}`;
    const canvas = document.createElement('canvas');
    paint(canvas, l, h);
    button.append(canvas, `${l + 1}.${h + 1}`);
    button.setAttribute('aria-label', `${l + 1}.${h + 1}: layer ${l + 1}, head ${h + 1}${type ? `, ${heatkv.typeWords(type)}` : ''}`);
    button.addEventListener('click', () => { heatkv.look(l, h, heatkv.cell.scale); heatkv.emit('open-head'); });
    return button;
  }));
  mark();
}
function mark() {
  const here = `${heatkv.cell.layer}.${heatkv.cell.head}`;
  for (const button of find('.grid').children) button.setAttribute('aria-pressed', String(button.dataset.head === here));
  stop(find('.grid [aria-pressed="true"]') || find('.grid').firstElementChild);
}
/** All heads are one stop of the Tab key; arrows go on from there. */
function stop(button) {
  for (const other of find('.grid').children) other.tabIndex = other === button ? 0 : -1;
}
find('.grid').addEventListener('keydown', (event) => {
  const buttons = [...find('.grid').children];
  const at = buttons.indexOf(event.target);
  if (at < 0) return;
  const across = Math.max(1, buttons.findIndex((one) => one.offsetTop > buttons[0].offsetTop));
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - across, ArrowDown: at + across, Home: 0, End: buttons.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const next = buttons[to];
  if (next) { stop(next); next.focus(); }
});
/** While the slider moves only the colours change. */
const repaint = () => { for (const button of find('.grid').children) paint(button.firstChild, ...button.dataset.head.split('.').map(Number)); };
let soon = null;
for (const name of ['.type', '.order']) find(name).addEventListener('change', show);
heatkv.follow(element, ['table', 'colours', 'look'], show);
heatkv.follow(element, ['cell'], mark);
for (const name of ['budget', 'edits']) heatkv.bus.addEventListener(name, () => { clearTimeout(soon); soon = setTimeout(() => { if (element.isConnected && heatkv.table) repaint(); }, 60); });
