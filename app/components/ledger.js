/* Hands the table of a published model to the store of its tab, and says what the budget comes to in both accountings.
 * value: the table, see heatkv/budgets.py.
 */
const heatkv = window.heatkvOf(element);
const find = (name) => element.querySelector(`.${name}`);

function draw() {
  const { peak, fullPeak, paperFactor } = heatkv.memory();
  const t = heatkv.table;
  const part = (factor) => `${heatkv.mib(peak * factor, fullPeak * factor)} of ${heatkv.showMib(fullPeak * factor)}`;
  find('papers').textContent = paperFactor ? part(paperFactor) : 'they know no cells in fewer bits';
  find('ours').textContent = part(1);
  find('dtype').textContent = t.heldBytesPerToken < t.bytesPerToken ? 'keys and values in 8 bits or fewer' : `keys and values ${t.dtype}`;
  const percent = (100 * peak) / fullPeak;
  find('base').textContent = `peak KV cache, ${percent.toFixed(1)} % of the full one; ${t.batch} ${t.batch === 1 ? 'image' : 'images'} with guidance, ${t.model}`;
  element.querySelector('.bar i').style.width = `${percent}%`;
}

function take() {
  const first = !heatkv.table;
  heatkv.load(props.value);
  if (first && props.value && props.value.defaults) heatkv.setBudget(props.value.defaults.budget);
}
watch('value', take);
take();
heatkv.follow(element, ['table', 'budget'], draw);
