/* How close two runs are and what they cost. value: the plain data of app/report.py, or null; text is never markup. */
const find = (path) => element.querySelector(path);
const make = (tag, className, text) => Object.assign(document.createElement(tag), { className: className || '', textContent: text ?? '' });
const row = (tag, texts) => { const tr = document.createElement('tr'); tr.append(...texts.map((text) => make(text ? tag : 'td', '', text))); return tr; }; // a header of nothing is none

function ladder(rows, unit) {
  find('.ladder thead').replaceChildren(row('th', ['', 'PSNR', '', 'foreground', 'SSIM', unit]));
  const top = Math.max(...rows.map((entry) => entry.psnr));
  const low = Math.min(...rows.map((entry) => entry.psnr)) - 3;
  find('.ladder tbody').replaceChildren(...rows.map((entry) => {
    const tr = row('td', [entry.name, entry.psnr_text, '', entry.foreground_text, entry.ssim_text, entry.bits_text]);
    tr.className = entry.this ? 'this' : '';
    const track = make('span');
    track.append(Object.assign(make('i'), { style: `width:${Math.max(3, (100 * (entry.psnr - low)) / Math.max(top - low, 1e-6))}%` }));
    tr.children[2].className = 'dot';
    tr.children[2].append(track);
    return tr;
  }));
}

/** Bars from `floor` (what two fair coins give) to all. */
function bits(values, floor) {
  find('.bits').replaceChildren(...values.map((value, k) => {
    const column = make('div');
    const bar = make('div', 'bar');
    bar.append(Object.assign(make('i'), { style: `height:${Math.max(0, (100 * (value - floor)) / (1 - floor))}%` }));
    column.append(make('span', '', value === 1 ? '100' : (100 * value).toFixed(1)), bar, make('b', '', k + 1));
    return column;
  }));
}

function show() {
  const value = props.value;
  find('.score').hidden = !value;
  if (!value) return;
  find('.run').textContent = value.run;
  const picture = find('.difference img');
  picture.src = String(value.difference).startsWith('data:image/png;base64,') ? value.difference : '';
  picture.alt = value.difference_note;
  find('.difference figcaption').textContent = value.difference_note;
  find('.headline').replaceChildren(...value.headline.map(([figure, name]) => { const box = make('div'); box.append(make('b', '', figure), make('span', '', name)); return box; }));
  find('.refs-note').textContent = value.references_note;
  find('.close').hidden = value.ladder.length < 2;
  ladder(value.ladder, value.unit);
  bits(value.bits, value.bits_floor);
  find('.bits-title').textContent = value.bits_title;
  find('.bits-note').textContent = value.bits_note;
  find('.cost-note').textContent = value.cost_note;
  find('.cost thead').replaceChildren(row('th', ['', 'A', 'B', 'B in A']));
  find('.cost tbody').replaceChildren(...value.cost.map((texts) => row('td', texts)));
  find('.fine').textContent = value.fine;
}
watch('value', show);
show();
