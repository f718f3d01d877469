/* The cache over the steps of drawing, under this budget and in full. Draws from the store of its tab; what was allocated
 * for the drawn picture takes the place of what the plan promises once it is known. */
const heatkv = window.heatkvOf(element);
const find = (path) => element.querySelector(path);
let drawn = null; // {recipe, held in bytes, peak}

function draw() {
  const t = heatkv.table;
  const plan = heatkv.memory();
  const here = drawn && drawn.recipe === JSON.stringify(heatkv.recipe()) && heatkv.recipe().forget ? drawn : null;
  const { full, fullPeak, paperFactor } = plan;
  const held = here ? [...plan.held.slice(0, full.length - here.held.length), ...here.held] : plan.held; // nothing is drawn while a condition is read
  const peak = here ? here.peak : plan.peak;
  const highest = fullPeak * Math.max(1, paperFactor);
  const show = paperFactor ? heatkv.showMib : heatkv.showBytes;
  const svg = find('svg');
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
  full.forEach((_, k) => { if (full.length < 12 || k % 2 === 0) parts.push(node('text', { x: x(k), y: bottom + 16, 'text-anchor': 'middle' }, heatkv.labelOf(k))); });
  parts.push(node('path', { class: 'area', d: `${path(held)}L${x(held.length - 1)} ${bottom}L${left} ${bottom}Z` }));
  parts.push(node('path', { class: 'full', d: path(full) }), node('path', { class: 'kept', d: path(held) }));
  if (paperFactor) for (const [kind, values] of [['full', full], ['kept', held]]) parts.push(node('path', { class: `paper ${kind}`, d: path(values.map((v) => v * paperFactor)) }));
  held.forEach((v, k) => parts.push(node('circle', { cx: x(k), cy: y(v), r: 3 })));
  svg.setAttribute('viewBox', `0 0 ${width} 150`);
  svg.replaceChildren(...parts);
  const figure = paperFactor
    ? `at most ${heatkv.showMib(peak, fullPeak)}; as the papers count ${heatkv.showMib(peak * paperFactor, fullPeak)}`
    : `at most ${heatkv.showPart(peak, fullPeak)}${heatkv.dynamic ? ', what it may hold' : ''}`;
  find('.keys .paper-key').hidden = !paperFactor;
  find('.what').textContent = `Memory while each ${t.word} is drawn`;
  find('.figure').textContent = figure;
  svg.setAttribute('aria-label', `KV cache from ${heatkv.nameOf(0)} to ${heatkv.nameOf(t.sizes.length - 1)}: ${figure}`);
}
heatkv.follow(element, ['table', 'budget', 'edits'], draw);
heatkv.bus.addEventListener('drawn', (event) => {
  const { b } = event.detail;
  if (!element.isConnected || !heatkv.recipe || !b.held) return;
  drawn = { recipe: JSON.stringify(heatkv.recipe()), held: b.held, peak: b.peak };
  draw();
});
new ResizeObserver(() => { if (heatkv.table) draw(); }).observe(find('svg'));
