/* Two images under a wipe, and the scales that led to them.
 *
 * value: {label, frames: [{full, less}, ...]} with lossless PNG data URLs, one pair a scale, the last one final.
 */
const find = (name) => element.querySelector(`.${name}`);
const stage = find('stage');
const slider = element.querySelector('input');
let chosen = null; // the scale in view; null follows the newest
const safe = (url) => typeof url === 'string' && url.startsWith('data:image/png;base64,');

function cut(percent) {
  slider.value = percent;
  stage.style.setProperty('--cut', `${slider.value}%`);
  slider.setAttribute('aria-valuetext', `${slider.value} % full cache, ${100 - slider.value} % compressed`);
}

function show() {
  const frames = (props.value && props.value.frames) || [];
  const pairs = frames.filter((pair) => safe(pair.full) && safe(pair.less));
  const at = chosen !== null && chosen < pairs.length ? chosen : pairs.length - 1;
  const any = pairs.length > 0;
  for (const name of ['full', 'less', 'edge', 'left', 'right']) find(name).hidden = !any;
  find('empty').hidden = any;
  slider.disabled = !any;
  if (!any) { find('strip').hidden = true; chosen = null; return; }
  find('full').src = pairs[at].full;
  find('less').src = pairs[at].less;
  find('right').textContent = String(props.value.label || 'compressed');
  find('strip').hidden = pairs.length < 2;
  const row = find('frames');
  while (row.children.length > pairs.length) row.lastChild.remove();
  pairs.forEach((pair, k) => {
    let button = row.children[k];
    if (!button) {
      button = document.createElement('button');
      button.type = 'button';
      button.append(document.createElement('img'), document.createElement('img'), document.createElement('span'));
      button.lastChild.textContent = k + 1;
      button.setAttribute('aria-label', `Scale ${k + 1}`);
      button.addEventListener('click', () => { chosen = k; show(); });
      row.append(button);
    }
    [pair.full, pair.less].forEach((url, i) => { button.children[i].alt = ''; if (button.children[i].src !== url) button.children[i].src = url; });
    button.setAttribute('aria-pressed', String(k === at));
  });
}

slider.addEventListener('input', () => cut(slider.value));
const drag = (event) => {
  if (slider.disabled || !(event.buttons || event.pointerType === 'mouse')) return;
  const area = stage.getBoundingClientRect();
  cut(Math.max(0, Math.min(100, Math.round((100 * (event.clientX - area.left)) / area.width))));
};
stage.addEventListener('pointermove', drag);
stage.addEventListener('pointerdown', drag);
watch('value', () => { if (!props.value || (props.value.frames || []).length <= 1) chosen = null; show(); });
cut(50);
show();
