/* Cells forgotten by hand, with undo and redo, and the text that names them (heatkv/views/edits.py reads it). */
window.heatkvEdits = () => {
  let shape = null; // [layers, heads, sources]
  let gone = new Uint8Array(0);
  let past = [];
  let future = [];
  const at = (l, h, s) => (l * shape[1] + h) * shape[2] + s;
  const every = (cells) => cells.every(([l, h, s]) => gone[at(l, h, s)]);
  const range = window.heatkvWords.range;

  function fit(layers, heads, sources) {
    if (shape && shape.join() === [layers, heads, sources].join()) return;
    shape = [layers, heads, sources];
    gone = new Uint8Array(layers * heads * sources);
    past = [];
    future = [];
  }
  function change(next) {
    past.push(gone);
    if (past.length > 200) past.shift();
    future = [];
    gone = next;
  }
  /** Forget these cells, or remember them again where all of them are forgotten. Returns whether they are forgotten now. */
  function toggle(cells) {
    const value = every(cells) ? 0 : 1;
    const next = gone.slice();
    for (const [l, h, s] of cells) next[at(l, h, s)] = value;
    change(next);
    return value === 1;
  }
  const step = (from, to) => { if (!from.length) return false; to.push(gone); gone = from.pop(); return true; };

  const headCells = (l, h) => range(shape[2]).map((s) => [l, h, s]);
  const layerCells = (l) => range(shape[1]).flatMap((h) => headCells(l, h));
  const sourceCells = (s) => range(shape[0]).flatMap((l) => range(shape[1]).map((h) => [l, h, s]));

  function toText() {
    if (!shape) return '';
    const left = gone.slice();
    const take = (cells) => { const some = cells.some(([l, h, s]) => left[at(l, h, s)]); for (const [l, h, s] of cells) left[at(l, h, s)] = 0; return some; };
    const words = range(shape[2]).filter((s) => every(sourceCells(s)) && take(sourceCells(s))).map((s) => `s${s + 1}`);
    for (const l of range(shape[0])) {
      if (every(layerCells(l)) && take(layerCells(l))) words.push(`${l + 1}`);
      for (const h of range(shape[1])) {
        if (every(headCells(l, h)) && take(headCells(l, h))) words.push(`${l + 1}.${h + 1}`);
        for (const s of range(shape[2])) if (left[at(l, h, s)]) words.push(`${l + 1}.${h + 1}.${s + 1}`);
      }
    }
    return words.join(',');
  }
  /** The mask that a text names; words that name nothing are passed over. */
  function fromText(text) {
    const next = new Uint8Array(gone.length);
    for (const word of String(text || '').slice(0, 200000).split(',')) {
      const found = /^(?:s(\d{1,5})|(\d{1,5})(?:\.(\d{1,5}))?(?:\.(\d{1,5}))?)$/.exec(word.trim());
      if (!found) continue;
      const [source, layer, head, cell] = found.slice(1).map((n) => (n === undefined ? null : Number(n) - 1));
      const cells = source !== null ? sourceCells(source) : head === null ? layerCells(layer) : cell === null ? headCells(layer, head) : [[layer, head, cell]];
      for (const [l, h, s] of cells) if (l >= 0 && l < shape[0] && h >= 0 && h < shape[1] && s >= 0 && s < shape[2]) next[at(l, h, s)] = 1;
    }
    return next;
  }
  return {
    fit, toggle, toText, headCells, layerCells, sourceCells, every,
    has: (l, h, s) => Boolean(shape) && gone[at(l, h, s)] === 1,
    set(text) { const next = fromText(text); if (next.some((v, i) => v !== gone[i])) change(next); },
    undo: () => step(past, future),
    redo: () => step(future, past),
    get count() { return gone.reduce((sum, v) => sum + v, 0); },
    get canUndo() { return past.length > 0; },
    get canRedo() { return future.length > 0; },
  };
};
