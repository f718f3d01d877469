/* Pairs of words. value: {title, rows: [[name, text]]}. */
const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
function show() {
  const value = props.value || { title: '', rows: [] };
  element.querySelector('h3').textContent = value.title;
  element.querySelector('dl').replaceChildren(...value.rows.map(([name, text]) => { const row = document.createElement('div'); row.append(make('dt', name), make('dd', text)); return row; }));
}
watch('value', show);
show();
