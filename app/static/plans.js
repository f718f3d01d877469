/* A table of budgets, as the parts of a tab share it: which cells every budget keeps, what that takes, the cell in view.
 * There are two: `window.heatkv` for the loaded model (see view.js), and `window.heatkvPublished` for published ones.
 *
 * Python sends the table once. From then on the slider calls `setBudget(35)` and every part that draws hears of it; no
 * request is made.
 */
window.heatkvPlans = () => {
  const words = window.heatkvWords;
  const bus = new EventTarget();
  const edits = window.heatkvEdits();
  let table = null;
  let budget = 100;
  let asked = 100; // the budget, but for the limits
  let limits = [0, 100];
  let fixed = false; // an uploaded schedule: the slider does not apply
  let rows = () => 1; // batch rows drawn, of those that the table counts
  let cell = { layer: 0, head: 0, scale: 0 };
  const emit = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));

  /** Call `run` now and whenever one of `names` happens. Ends by itself when `element` has left the page. */
  function follow(element, names, run) {
    const safe = (event) => { if (table) run(event); };
    for (const name of names) {
      const heard = (event) => (element.isConnected ? safe(event) : bus.removeEventListener(name, heard));
      bus.addEventListener(name, heard);
    }
    safe();
  }

  function load(value) {
    if (!value || !value.percents) return;
    const cached = value.sizes.length - 1;
    table = {
      ...value,
      cached,
      word: value.word || 'scale',
      masks: words.unpack(value.kept, Uint8Array),
      resident: words.unpack(value.resident, Uint32Array),
      cells: words.unpack(value.cells, Uint16Array),
      change: words.unpack(value.change, Uint16Array),
      types: words.unpack(value.types, Uint8Array),
      distance: value.distance && { ...value.distance, shares: words.unpack(value.distance.shares, Uint16Array) },
      prunable: cached - value.sinkScales,
      tokens: value.sizes.map(([h, w]) => h * w),
    };
    table.stride = Math.ceil((table.layers * table.heads * table.prunable) / 8);
    fixed = Boolean(value.fixed);
    edits.fit(table.layers, table.heads, cached);
    cell = { layer: words.clamp(cell.layer, table.layers), head: words.clamp(cell.head, table.heads), scale: words.clamp(cell.scale, cached) };
    emit('table');
  }

  /** Index of the plan that the budget calls for: the last one that is not above it. */
  function step() {
    if (fixed) return 0;
    let found = 0;
    while (found + 1 < table.percents.length && table.percents[found + 1] <= budget + 1e-9) found += 1;
    return found;
  }

  /** Whether the plan keeps a cell to the end, whatever was forgotten by hand. */
  function planned(layer, head, scale, at = step()) {
    if (scale < table.sinkScales) return true;
    const bit = (layer * table.heads + head) * table.prunable + scale - table.sinkScales;
    return ((table.masks[at * table.stride + (bit >> 3)] >> (bit & 7)) & 1) === 1;
  }
  const dynamic = () => Boolean(table) && table.static === false; // decides while it draws: no schedule
  const forgotten = (layer, head, scale) => !dynamic() && edits.has(layer, head, scale); // where there is no plan the edits rest
  const kept = (layer, head, scale, at = step()) => planned(layer, head, scale, at) && !forgotten(layer, head, scale);

  /** The smallest budget from which on a cell is always kept, in percent; null if it never is. */
  function keptFrom(layer, head, scale) {
    let from = null;
    for (let at = table.percents.length - 1; at >= 0 && planned(layer, head, scale, at); at -= 1) from = table.percents[at];
    return from;
  }

  /** Tokens held after every step. What was forgotten by hand is taken off where the plan keeps it to the end; cells that
   * the plan lets go on the way make this an upper bound, which the drawn picture replaces by what was allocated. */
  function resident(at = step()) {
    const held = Array.from(table.resident.subarray(at * table.sizes.length, (at + 1) * table.sizes.length));
    if (!edits.count || dynamic() || table.storage !== 'compute') return held; // then entries are bytes, and how many a cell takes is the plan's to know
    for (const l of words.range(table.layers)) {
      for (const h of words.range(table.heads)) {
        for (const s of words.range(table.cached)) {
          if (edits.has(l, h, s) && planned(l, h, s, at)) for (let t = s; t < held.length; t += 1) held[t] -= table.tokens[s];
        }
      }
    }
    return held;
  }

  function memory(at = step()) {
    const held = resident(at);
    const [one, whole] = [table.heldBytesPerToken * rows(), table.bytesPerToken * rows()];
    return {
      held: held.map((n) => n * one),
      full: table.fullResident.map((n) => n * whole),
      peak: Math.max(...held) * one,
      fullPeak: Math.max(...table.fullResident) * whole,
      paperFactor: (table.paperBytesPerToken || 0) / table.bytesPerToken, // 0: not asked for
    };
  }

  function setBudget(value) {
    if (!Number.isFinite(Number(value))) return;
    asked = Number(value);
    settle();
  }
  /** How far the policy in use goes. What was asked for is taken up again where another goes so far. */
  function limitBudget(least, most) {
    limits = [least, most];
    settle();
  }
  function settle() {
    const now = Math.max(limits[0], Math.min(limits[1], asked));
    if (now === budget) return;
    budget = now;
    emit('budget');
  }

  /** Move the cursor to a cell. */
  function look(layer, head, scale) {
    cell = { layer: words.clamp(layer, table.layers), head: words.clamp(head, table.heads), scale: words.clamp(scale, table.cached) };
    emit('cell');
  }

  return {
    ...words, bus, emit, follow, load, edits, setBudget, limitBudget, step, planned, forgotten, kept, keptFrom, resident, memory, look,
    countRows(count) { rows = count; },
    get table() { return table; },
    get budget() { return fixed ? table.percents[0] : budget; },
    get asked() { return asked; }, // whatever the policy in use allows, and even while a file's schedule is in use
    get fixed() { return fixed; },
    get dynamic() { return dynamic(); },
    get cell() { return cell; },
    get dark() { return document.body.classList.contains('dark'); },
    typeOf(layer, head) { return table.typeNames[table.types[layer * table.heads + head]] || null; },
    labelOf(scale) { return table.word === 'line' ? scale || 'cond' : scale + 1; }, // the name where there is little room
    nameOf(scale) { return (table.names && table.names[scale]) || `${table.word} ${scale + 1}`; },
    /** Kept cells [layer][head][scale], for tests and for the curious. */
    keptCells: () => words.range(table.layers).map((l) => words.range(table.heads).map((h) => words.range(table.cached).map((s) => kept(l, h, s)))),
  };
};
window.heatkvPublished = window.heatkvPlans();
/** What a part draws from: that of the tab it stands in. */
window.heatkvOf = (element) => (element.closest('#tab-published') ? window.heatkvPublished : window.heatkv);
