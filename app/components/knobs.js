/* Hands the table to the store and says what the budget comes to in bytes. value: the table, see app/workbench.py. */
const heatkv = window.heatkv;
const find = (name) => element.querySelector(`.${name}`);

function draw() {
  const { peak, fullPeak } = heatkv.memory();
  const percent = (100 * peak) / fullPeak;
  find('bytes').textContent = heatkv.showPart(peak, fullPeak);
  find('share').textContent = `(${percent.toFixed(Math.abs(percent - Math.round(percent)) < 0.05 ? 0 : 1)} %)`;
  const compact = heatkv.table.heldBytesPerToken < heatkv.table.bytesPerToken;
  find('base').textContent = `peak KV cache of one image, ${heatkv.table.model}${compact ? '; cells in 8 bits or fewer, which the budget counts against 16-bit ones' : ''}`;
  element.querySelector('.bar i').style.width = `${percent}%`;
}

const take = () => heatkv.load(props.value);
watch('value', take);
take();
heatkv.follow(element, ['table', 'budget'], draw);
