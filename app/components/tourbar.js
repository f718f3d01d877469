/* The tour: an invitation, then one step at a time above the tabs, while Python sets the real controls.
 *
 * value: {steps: [{title, text, focus}], at: index or null}. Triggers 'step' with {index}.
 */
const heatkv = window.heatkv;
const find = (name) => element.querySelector(`.${name}`);
const KEY = 'heatkv-tour-seen';
const seen = () => { try { return localStorage.getItem(KEY) === 'yes'; } catch { return false; } };
const remember = () => { try { localStorage.setItem(KEY, 'yes'); } catch { /* private windows have no storage */ } };
const steps = () => (props.value && props.value.steps) || [];
let at = null;

function point(selector) {
  document.querySelectorAll('.tour-target').forEach((node) => node.classList.remove('tour-target'));
  if (!selector) return;
  setTimeout(() => {
    const target = document.querySelector(selector);
    if (!target || at === null) return;
    target.classList.add('tour-target');
    const area = target.getBoundingClientRect();
    if (area.top < 0 || area.bottom > window.innerHeight) target.scrollIntoView({ block: 'center', behavior: 'smooth' });
  }, 350);
}

function show() {
  const all = steps();
  const touring = at !== null && all[at];
  find('tour').hidden = !touring && (seen() || !all.length);
  find('title').textContent = touring ? all[at].title : 'New here?';
  find('text').textContent = touring ? all[at].text : `${all.length} short steps show what this is about, with the real controls.`;
  find('count').textContent = touring ? `${at + 1} of ${all.length}` : '';
  find('back').hidden = !touring;
  find('back').disabled = at === 0;
  find('next').textContent = !touring ? 'Take the tour' : at + 1 < all.length ? 'Next' : 'Done';
  find('leave').textContent = touring ? 'Leave the tour' : 'No, thanks';
}

function go(index) {
  at = index >= 0 && index < steps().length ? index : null;
  remember();
  heatkv.set('tour', at === null ? null : at + 1);
  show();
  point(at === null ? null : steps()[at].focus);
  if (at !== null) trigger('step', { index: at });
}

find('back').addEventListener('click', () => go(at - 1));
find('next').addEventListener('click', () => go(at === null ? 0 : at + 1));
find('leave').addEventListener('click', () => go(-1));
heatkv.bus.addEventListener('tour', (event) => { if (element.isConnected) go(event.detail); });
watch('value', () => {
  if (props.value && Number.isInteger(props.value.at)) { at = props.value.at; heatkv.set('tour', at + 1); point(steps()[at] && steps()[at].focus); }
  show();
});
show();
