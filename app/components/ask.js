/* What to draw: prompt, seed, how tokens are drawn, Draw; the model where there are several; the link to this view. value:
 * {examples, models: [{name, title, path}], model, sampling: [{name, label, own, hint}]}. */
const heatkv = window.heatkv;
const find = (path) => element.querySelector(path);
const [prompt, seed] = [find('.prompt input'), find('.seed input')];
const readSeed = () => (/^\s*\d{1,10}\s*$/.test(seed.value) && Number(seed.value) < 2 ** 32 ? Number(seed.value) : seed.value.trim() === '' ? null : seed.value.trim());

function take() {
  const value = props.value;
  if (!value) return;
  find('datalist').replaceChildren(...value.examples.map((text) => Object.assign(document.createElement('option'), { value: text })));
  if (!find('.fields').children.length) makeFields(value.sampling);
  find('.model').hidden = value.models.length < 2;
  find('.model select').replaceChildren(...value.models.map((model) => Object.assign(document.createElement('option'), { value: model.path, textContent: model.title, selected: model.name === value.model })));
}
/** A field for each thing that can be said of how tokens are drawn; what is no number is not taken, and said so. */
function makeFields(fields) {
  find('.fields').replaceChildren(...fields.map(({ name, label, own, hint }) => {
    const input = Object.assign(document.createElement('input'), { type: 'text', inputMode: 'decimal', maxLength: 8, placeholder: String(own) });
    input.dataset.name = name;
    input.addEventListener('change', () => {
      const text = input.value.trim().replace(',', '.');
      const { [name]: before, ...others } = heatkv.view.sampling;
      const wrong = text !== '' && !/^\d{1,4}(\.\d{1,6})?$/.test(text);
      find('.wrong').textContent = wrong ? `“${text}” is not taken: ${label} is a number from 0 up, such as ${own}.` : '';
      if (wrong) { input.value = before ?? ''; return; }
      const number = text === '' ? null : Number(text);
      heatkv.set({ sampling: number === null || number === own ? others : { ...others, [name]: number } });
      show();
    });
    const made = document.createElement('label');
    made.append(Object.assign(document.createElement('b'), { textContent: label }), input, Object.assign(document.createElement('small'), { textContent: hint }));
    return made;
  }));
}
function showSampling() {
  const changed = Object.keys(heatkv.view.sampling).length > 0;
  for (const input of find('.fields').querySelectorAll('input')) if (document.activeElement !== input) input.value = heatkv.view.sampling[input.dataset.name] ?? '';
  find('.sampling').classList.toggle('changed', changed);
  find('.sampling summary span').textContent = changed ? 'Sampling: yours' : 'Sampling';
  find('.own').disabled = !changed;
}
find('.own').addEventListener('click', () => { heatkv.set({ sampling: {} }); find('.wrong').textContent = ''; show(); });
find('.sampling').addEventListener('keydown', (event) => { if (event.key === 'Escape') { find('.sampling').open = false; find('.sampling summary').focus(); } });
document.addEventListener('pointerdown', (event) => { if (element.isConnected && !event.composedPath().includes(find('.sampling'))) find('.sampling').open = false; });

// The prompt and the seed of the view that the fields were last set to: what is being written stays until the view changes.
let given = null;
let givenSeed = null;
const show = () => {
  showSampling();
  if (given !== heatkv.view.prompt) { given = heatkv.view.prompt; prompt.value = given; }
  if (givenSeed !== heatkv.view.seed) { givenSeed = heatkv.view.seed; seed.value = givenSeed ?? ''; }
};
heatkv.bus.addEventListener('look', () => { // the model's own name for the prompt
  if (!element.isConnected || given === heatkv.view.prompt) return;
  if (prompt.value === given) prompt.value = heatkv.view.prompt;
  given = heatkv.view.prompt;
});
find('form').addEventListener('submit', (event) => {
  event.preventDefault();
  let number = readSeed();
  if (number === null) number = Math.floor(Math.random() * 10000); // the seed that is drawn is the seed that is shared
  heatkv.set({ prompt: prompt.value, seed: number });
  show();
  if (heatkv.view.tab !== 'explore') document.querySelector('#tab-explore-button')?.click(); // where it is seen
  heatkv.emit('draw');
});
prompt.addEventListener('input', () => heatkv.emit('typing', prompt.value));
heatkv.bus.addEventListener('given', () => { // a lesson shows its own prompt, whatever was being written
  if (!element.isConnected) return;
  given = null;
  givenSeed = undefined;
  show();
  heatkv.emit('typing', prompt.value);
});
find('.model select').addEventListener('change', (event) => {
  const link = new URL(heatkv.link(true));
  for (const key of ['head', 'forget', 'a', ...heatkv.SAMPLING]) link.searchParams.delete(key);
  if (prompt.value.trim()) link.searchParams.set('prompt', prompt.value);
  location.assign(heatkv.themed(`${event.target.value}${link.search}`).href);
});

find('.theme').addEventListener('click', () => {
  document.body.classList.toggle('dark');
  const url = new URL(location.href);
  url.searchParams.set('__theme', heatkv.dark ? 'dark' : 'light');
  history.replaceState(null, '', url);
});

find('.share').addEventListener('click', async () => {
  const link = heatkv.link(true);
  const missing = heatkv.notInLink();
  const field = find('.shared input');
  let copied = true;
  find('.shared').hidden = false;
  field.value = link;
  find('.code').hidden = true;
  if (heatkv.view.classMode && !heatkv.onlyHere) window.heatkvQr.paint(find('.code'), link);
  field.focus();
  field.select();
  try { await navigator.clipboard.writeText(link); } catch { copied = false; }
  const [how, whole] = copied ? ['Copied', ': it opens with these pictures.'] : ['Copy it from here', '.'];
  const what = missing ? `, but it will show other pictures: ${missing} can not be in a link.` : whole;
  find('.done').textContent = `${how}${what}${heatkv.onlyHere ? ' It opens on this computer alone.' : ''}`;
});
find('.close').addEventListener('click', () => { find('.shared').hidden = true; find('.share').focus(); });
find('.shared').addEventListener('keydown', (event) => { if (event.key === 'Escape') find('.close').click(); });

watch('value', take);
take();
for (const name of ['view', 'table']) heatkv.bus.addEventListener(name, () => { if (element.isConnected) show(); });
show();
