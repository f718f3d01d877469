/* How far a job is. value: {done, of, text} or null. */
function show() {
  const value = props.value;
  element.querySelector('.progress').hidden = !value;
  if (!value) return;
  element.querySelector('.track i').style.width = `${(100 * value.done) / Math.max(1, value.of)}%`;
  element.querySelector('.text').textContent = value.text;
}
watch('value', show);
show();
