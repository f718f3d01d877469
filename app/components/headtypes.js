/* Two kinds of heads, a row a layer: filled and hollow, so that colour is not needed. value: see app/headtypes.py. */
const find = (path) => element.querySelector(path);

function show() {
  const value = props.value;
  find('.types').hidden = !value;
  if (!value) return;
  for (const name of ['title', 'text', 'source', 'first', 'second']) find(`.${name}`).textContent = value[name];
  const count = value.heads.flat().filter(Boolean).length;
  find('.grid').setAttribute('aria-label', `${count} of ${value.heads.flat().length} heads: ${value.first}`);
  find('.keys').hidden = !value.heads.length;
  find('.grid').replaceChildren(...value.heads.map((row, layer) => {
    const line = document.createElement('div');
    line.append(Object.assign(document.createElement('em'), { textContent: `layer ${layer + 1}` }));
    line.append(...row.map((yes, head) => Object.assign(document.createElement('i'), {
      className: yes ? 'yes' : '', title: `Layer ${layer + 1}, head ${head + 1}: ${yes ? value.first : value.second}`,
    })));
    return line;
  }));
}
watch('value', show);
show();
