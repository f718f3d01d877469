/* The table of a comparison and what the policies are. value: see app/charts.py; text is never markup. */
const find = (path) => element.querySelector(path);
const make = (tag, text, className) => Object.assign(document.createElement(tag), { textContent: text ?? '', className: className || '' });
const row = (tag, texts, className) => { const tr = make('tr', '', className); tr.append(...texts.map((text) => make(text ? tag : 'td', text))); return tr; }; // a header of nothing is none

function show() {
  const value = props.value;
  if (!value) return;
  find('.measured').hidden = !value.groups.length;
  find('.what').textContent = value.what;
  find('thead').replaceChildren(row('th', value.columns));
  for (const body of element.querySelectorAll('tbody')) body.remove();
  const known = make('tbody', '', 'references');
  known.append(...value.references.map((texts) => row('td', texts)));
  const groups = value.groups.map((group) => {
    const body = make('tbody');
    const head = row('td', [group.budget], 'budget');
    head.firstChild.colSpan = value.columns.length;
    body.append(head, ...group.rows.map((texts, i) => row('td', texts, i ? '' : 'best')));
    return body;
  });
  find('table').append(known, ...groups);
  find('dl').replaceChildren(...value.policies.flatMap(([title, summary, provenance]) => {
    const about = make('dd', summary);
    about.append(make('small', provenance));
    return [make('dt', title), about];
  }));
}
// Gradio's own placeholder of a plot that is still to come has a label and no role, which screen readers pass over.
const plot = document.querySelector('#methods-plot');
const name = () => { for (const node of plot.querySelectorAll('.empty[aria-label]:not([role])')) node.setAttribute('role', 'img'); };
if (plot) { new MutationObserver(name).observe(plot, { childList: true, subtree: true }); name(); }
watch('value', show);
show();
