/* One line that tells how it went. value: {kind: 'info' | 'error', text} or null; the text is never markup. */
const line = element.querySelector('.notice');
function show() {
  const { kind = 'info', text = '' } = props.value || {};
  line.hidden = !text;
  line.dataset.kind = kind;
  line.setAttribute('role', kind === 'error' ? 'alert' : 'status');
  line.textContent = text;
}
watch('value', show);
show();
