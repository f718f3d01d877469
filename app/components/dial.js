/* The budget, with what the picture becomes along it, what it takes, and the policy that spends it.
 *
 * value: {groups: [{name, policies: [{name, title, summary, static}]}], policy, storages: {name: words}, storage, refused:
 * why cells are not stored as was asked}. Triggers 'types' when another policy is in use, or what plans are made from.
 */
const heatkv = window.heatkv;
const find = (path) => element.querySelector(path);
const slider = find('input[type="range"]');
const select = find('.policies');
const stored = find('.storages');
let summaries = {};
let refused = '';
let inUse = null; // whose types of heads are shown

const option = (value, textContent) => Object.assign(document.createElement('option'), { value, textContent });

function take() {
  const value = props.value;
  if (!value) return;
  summaries = {};
  const groups = value.groups.map((group) => {
    const made = Object.assign(document.createElement('optgroup'), { label: group.name });
    made.append(...group.policies.map((policy) => {
      summaries[policy.name] = policy.summary;
      return option(policy.name, policy.title);
    }));
    return made;
  });
  select.replaceChildren(...groups);
  stored.replaceChildren(option('', 'usual bits'), ...Object.entries(value.storages).map(([name, words]) => option(name, words)));
  refused = value.refused;
  // What was chosen may not be possible any more. If it is, this may be the answer to a choice of before.
  if (value.policy && !(heatkv.view.policy in summaries)) heatkv.set({ policy: value.policy }, 'look');
  if (refused && heatkv.view.storage !== value.storage) { // the table may have come before this, or come yet
    heatkv.set({ storage: value.storage }, 'look');
    if (heatkv.table && heatkv.tableFits()) heatkv.emit('view');
  }
  show();
}

function show() {
  const t = heatkv.table;
  if (!t) return;
  const most = heatkv.fixed ? 100 : t.most || 100;
  slider.min = heatkv.fixed ? 1 : t.percents[0];
  slider.max = most;
  slider.disabled = select.disabled = heatkv.fixed;
  stored.disabled = heatkv.fixed || heatkv.dynamic; // who chooses tokens keeps them as they are
  select.value = heatkv.view.policy;
  stored.value = heatkv.view.storage;
  // A policy that was just chosen may go lower or higher; its own table says how far.
  const own = !heatkv.fixed && heatkv.tableFits();
  if (own) heatkv.limitBudget(t.percents[0], most);
  const rest = !heatkv.fixed && most < 100 ? ` From ${most} % on nothing is given up.` : '';
  const words = heatkv.fixed ? 'A schedule from a file is in use; budget and policy rest.' : refused ? refused : `${summaries[t.policy] || ''}${rest}`;
  if (find('.sentence').textContent !== words) find('.sentence').textContent = find('.sentence').title = words;
  find('.sentence').classList.toggle('refused', Boolean(refused));
  draw();
}

function draw() {
  const { peak, fullPeak } = heatkv.memory();
  const share = (100 * peak) / fullPeak;
  const value = heatkv.budget;
  const at = (Number(slider.value = value) - slider.min) / Math.max(1, slider.max - slider.min);
  slider.style.setProperty('--at', `${(100 * at).toFixed(2)}%`);
  slider.setAttribute('aria-valuetext', `${value} percent of the full cache, ${heatkv.showPart(peak, fullPeak)}`);
  find('.value b').textContent = `${value} %`;
  find('.bytes').textContent = heatkv.showPart(peak, fullPeak);
  const compact = (heatkv.table.storage || 'compute') !== 'compute';
  find('.base').textContent = Math.abs(share - value) < 1.5 || compact ? `peak cache${compact ? `, in few bits: ${share.toFixed(0)} % of the bytes` : ' of this image'}` : `peak cache: ${share.toFixed(1)} %`;
  for (const button of find('.strip').children) button.setAttribute('aria-current', String(Number(button.dataset.percent) === value));
}

function strip(pictures) {
  const row = find('.strip');
  const [least, most] = [Number(slider.min), Number(slider.max)];
  row.replaceChildren(...pictures.map(({ percent, image }) => {
    const button = Object.assign(document.createElement('button'), { type: 'button', tabIndex: -1, title: `${percent} %` });
    button.dataset.percent = percent;
    button.style.setProperty('--place', (percent - least) / Math.max(1, most - least));
    button.setAttribute('aria-label', `Budget ${percent} %`);
    button.append(Object.assign(document.createElement('img'), { src: image, alt: '' }));
    button.addEventListener('click', () => { heatkv.setBudget(percent); heatkv.emit('view'); });
    return button;
  }));
  draw();
}

slider.addEventListener('input', () => { const start = performance.now(); heatkv.setBudget(Number(slider.value)); heatkv.lastInput = performance.now() - start; });
slider.addEventListener('change', () => heatkv.emit('view')); // released: the exact picture
select.addEventListener('change', () => { heatkv.set({ policy: select.value }, 'look'); heatkv.emit('want-table'); });
stored.addEventListener('change', () => { heatkv.set({ storage: stored.value }, 'look'); heatkv.emit('want-table'); });
watch('value', take);
take();
heatkv.follow(element, ['table'], show);
heatkv.follow(element, ['table'], () => { // after `show`: the budget is the policy's own by then
  if (!heatkv.tableFits()) return;
  const [before, now] = [inUse, [heatkv.table.policy, heatkv.view.basis].join()];
  inUse = now;
  if (before !== now && (before || heatkv.table.policy !== heatkv.defaults?.policy)) trigger('types', { id: heatkv.number(), policy: heatkv.table.policy, percent: heatkv.budget, ...heatkv.subject() });
});
heatkv.follow(element, ['budget', 'edits'], draw);
heatkv.bus.addEventListener('strip', (event) => { if (element.isConnected && heatkv.table) strip(event.detail); });
