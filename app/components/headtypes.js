/* Two kinds of heads, a row a layer: filled and hollow, so that colour is not needed. value: see app/headtypes.py. */
const find = (path) => element.querySelector(path);
const make = (tag, more, ...children) => { const made = Object.assign(document.createElement(tag), more); made.append(...children); return made; };

function grid({ name, heads }, value) {
  const count = heads.flat().filter(Boolean).length;
  const rows = heads.map((row, layer) => make('div', {}, make('em', { textContent: `layer ${layer + 1}` }), ...row.map((yes, head) => make('i', {
    className: yes ? 'yes' : '', title: `Layer ${layer + 1}, head ${head + 1}: ${yes ? value.first : value.second}`,
  }))));
  const field = make('div', { className: 'grid' }, ...rows);
  field.setAttribute('role', 'img');
  field.setAttribute('aria-label', `${name ? `${name}: ` : ''}${count} of ${heads.flat().length} heads: ${value.first}`);
  return make('div', {}, ...(name ? [make('h4', { textContent: name })] : []), field);
}

function show() {
  const value = props.value;
  find('.types').hidden = !value;
  if (!value) return;
  for (const name of ['title', 'text', 'source', 'first', 'second']) find(`.${name}`).textContent = value[name];
  find('.keys').hidden = !value.grids.length;
  find('.grids').replaceChildren(...value.grids.map((one) => grid(one, value)));
}
watch('value', show);
show();
