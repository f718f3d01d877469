/* One line that tells how it went. value: {kind: 'info' | 'error', text} or null; the text is never markup. */
const line = element.querySelector('.notice');
function show() {
  const { kind = 'info', text = '' } = props.value || {};
  line.hidden = !text;
  line.dataset.kind = kind;
  line.setAttribute('role', kind === 'error' ? 'alert' : 'status');
  // What stands between backticks is a command or a word of the prompt.
  line.replaceChildren(...text.split('`').map((part, i) => (i % 2 ? Object.assign(document.createElement('code'), { textContent: part }) : part)));
}
watch('value', show);
show();
