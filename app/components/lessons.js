/* The lessons to choose from; the bar in lesson.js leads through the one that was chosen. In class mode with large type and
 * a QR code of each, for phones in the room. value: {lessons: [...]}. */
const heatkv = window.heatkv;
const { make } = heatkv;
const big = element.querySelector('.big input');
const address = (index) => `${heatkv.home()}?lesson=${index + 1}`;

function show() {
  const lessons = (props.value && props.value.lessons) || [];
  element.querySelector('ol').replaceChildren(...lessons.map((lesson, index) => {
    const item = document.createElement('li');
    const start = Object.assign(make('button', 'start'), { type: 'button' });
    start.append(make('span', 'number', index + 1), make('b', '', lesson.title), make('span', 'question', lesson.question));
    start.addEventListener('click', () => heatkv.emit('lesson', index));
    const link = Object.assign(make('button', 'link', 'Copy link'), { type: 'button' });
    link.setAttribute('aria-label', `Copy link to lesson ${index + 1}`);
    link.addEventListener('click', async () => {
      try { await navigator.clipboard.writeText(address(index) + (big.checked ? '&class=1' : '')); link.textContent = 'Copied'; } catch { link.textContent = `?lesson=${index + 1}`; }
      setTimeout(() => { link.textContent = 'Copy link'; }, 3000);
    });
    item.append(start, link);
    if (big.checked && !heatkv.onlyHere) {
      const code = make('canvas', 'code');
      code.setAttribute('role', 'img');
      code.setAttribute('aria-label', `QR code of the link to lesson ${index + 1}`);
      window.heatkvQr.paint(code, address(index));
      item.append(code);
    }
    return item;
  }));
}
function size() {
  if (heatkv.view.classMode !== big.checked) heatkv.set({ classMode: big.checked }, 'look');
  element.querySelector('.here').hidden = !big.checked || !heatkv.onlyHere;
  show();
}
big.checked = heatkv.view.classMode;
big.addEventListener('change', size);
watch('value', show);
size();
