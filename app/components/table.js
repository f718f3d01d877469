/* Hands the table of budgets to the store of the page. value: see app/workbench.py; with `view` at the start, which says
 * what the page opens with. */
const heatkv = window.heatkv;
/** Open the tab that the address names, as soon as its button is there. */
function openTab(name, tries) {
  const button = document.querySelector(`#tab-${name}-button`);
  if (button) button.click(); else if (tries) setTimeout(() => openTab(name, tries - 1), 100);
}

function take() {
  const value = props.value;
  if (!value || !value.percents) return;
  const first = !heatkv.table;
  if (value.view) heatkv.begin(value.view);
  Object.assign(heatkv.view, { source: value.source, basis: value.basis });
  heatkv.load(value);
  if (!first || !heatkv.defaults) return;
  if (heatkv.defaults.forget) heatkv.edits.set(heatkv.defaults.forget);
  heatkv.look(...heatkv.defaults.at, heatkv.cell.scale);
  heatkv.emit('edits');
  if (heatkv.view.tab !== 'explore') openTab(heatkv.view.tab, 40);
  // Another policy or storage than the table's: their own table is asked for.
  if (!heatkv.tableFits()) trigger('policy', { policy: heatkv.view.policy });
}
watch('value', take);
take();
heatkv.bus.addEventListener('want-table', () => trigger('policy', { policy: heatkv.view.policy }));
