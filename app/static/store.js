/* What the parts of the page share, in one place: the table of budgets, the budget, the head in view and the address.
 * There are two: `window.heatkv` for the loaded model, and `window.heatkvPublished` for what the Budgets tab looks at.
 *
 * Python sends the table once (knobs.js hands it over). From then on the slider calls `heatkv.set('budget', 35)` and
 * every part that draws hears of it; no request is made. Text from outside only ever reaches `textContent`.
 */
window.heatkvStore = () => {
  const bus = new EventTarget();
  const address = { budget: null, policy: null, prompt: null, seed: null, tab: null, head: null, tour: null };
  let defaults = {};
  let table = null;
  let budget = 100;
  let fixed = false; // an uploaded schedule: the slider does not apply
  let cell = { layer: 0, head: 0, scale: 0 };

  const unpack = (text, Type) => {
    const bytes = Uint8Array.from(atob(text || ''), (c) => c.charCodeAt(0));
    return new Type(bytes.buffer, 0, Math.floor(bytes.length / Type.BYTES_PER_ELEMENT));
  };
  const clamp = (value, count) => Math.max(0, Math.min(count - 1, Math.trunc(Number(value) || 0)));
  const emit = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));

  /** Call `run` now and whenever one of `names` happens. Ends by itself when `element` has left the page. */
  function follow(element, names, run) {
    const safe = () => { if (table) run(); };
    for (const name of names) {
      const heard = () => (element.isConnected ? safe() : bus.removeEventListener(name, heard));
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
      masks: unpack(value.kept, Uint8Array),
      resident: unpack(value.resident, Uint32Array),
      cells: unpack(value.cells, Uint16Array),
      types: unpack(value.types, Uint8Array),
      prunable: cached - value.sinkScales,
      tokens: value.sizes.map(([h, w]) => h * w),
    };
    table.stride = Math.ceil((table.layers * table.heads * table.prunable) / 8);
    fixed = Boolean(value.fixed);
    if (value.defaults) defaults = value.defaults;
    if (address.budget === null && Number.isFinite(defaults.budget)) budget = defaults.budget;
    cell = { layer: clamp(cell.layer, table.layers), head: clamp(cell.head, table.heads), scale: clamp(cell.scale, cached) };
    emit('table');
  }

  /** Index of the plan that the budget calls for: the last one that is not above it. */
  function step() {
    if (fixed) return 0;
    let found = 0;
    while (found + 1 < table.percents.length && table.percents[found + 1] <= budget + 1e-9) found += 1;
    return found;
  }

  function kept(layer, head, scale, at = step()) {
    if (scale < table.sinkScales) return true;
    const bit = (layer * table.heads + head) * table.prunable + scale - table.sinkScales;
    return ((table.masks[at * table.stride + (bit >> 3)] >> (bit & 7)) & 1) === 1;
  }

  /** The smallest budget from which on a cell is always kept, in percent; null if it never is. */
  function keptFrom(layer, head, scale) {
    let from = null;
    for (let at = table.percents.length - 1; at >= 0 && kept(layer, head, scale, at); at -= 1) from = table.percents[at];
    return from;
  }

  const resident = (at = step()) => Array.from(table.resident.subarray(at * table.sizes.length, (at + 1) * table.sizes.length));

  function bytes(count) {
    const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
    let unit = 0;
    while (count >= 1000 && unit < units.length - 1) { count /= 1024; unit += 1; }
    return { count, unit: units[unit], digits: unit === 0 || count >= 100 ? 0 : count >= 10 ? 1 : 2 };
  }
  const showBytes = (count) => { const b = bytes(count); return `${b.count.toFixed(b.digits)} ${b.unit}`; };

  /** "118 of 338 KiB": both in the unit of the larger. */
  function showPart(part, whole) {
    const b = bytes(whole);
    const factor = b.count / whole;
    return `${(part * factor).toFixed(b.digits)} of ${b.count.toFixed(b.digits)} ${b.unit}`;
  }

  function memory(at = step()) {
    const held = resident(at);
    return {
      held: held.map((n) => n * table.heldBytesPerToken),
      full: table.fullResident.map((n) => n * table.bytesPerToken),
      peak: Math.max(...held) * table.heldBytesPerToken,
      fullPeak: Math.max(...table.fullResident) * table.bytesPerToken,
      paperFactor: (table.paperBytesPerToken || 0) / table.bytesPerToken, // 0: not asked for
    };
  }

  /** The address of this view; `whole` spells out what equals the defaults too. */
  function link(whole) {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries({ ...(whole ? defaults : {}), ...present() })) {
      if (value !== null && value !== '' && (whole || String(value) !== String(defaults[key]))) query.set(key, value);
    }
    const text = query.toString();
    return `${location.origin}${location.pathname}${text ? `?${text}` : ''}`;
  }
  const present = () => Object.fromEntries(Object.entries(address).filter(([, value]) => value !== null));

  let writing = null; // browsers refuse more than a few changes of the address a second
  function writeAddress() {
    clearTimeout(writing);
    writing = setTimeout(() => {
      const theme = new URLSearchParams(location.search).get('__theme');
      const url = new URL(link(false));
      if (theme === 'dark' || theme === 'light') url.searchParams.set('__theme', theme);
      history.replaceState(null, '', url);
    }, 250);
  }

  function set(key, value) {
    if (!(key in address)) return;
    if (key === 'budget') {
      if (!Number.isFinite(Number(value))) return;
      budget = Number(value);
    }
    address[key] = value === null || value === undefined ? null : String(value).slice(0, 1000);
    if (key === 'budget') emit('budget');
    if (defaults.tab) writeAddress();
  }

  /** Move the cursor to a cell. */
  function look(layer, head, scale) {
    cell = { layer: clamp(layer, table.layers), head: clamp(head, table.heads), scale: clamp(scale, table.cached) };
    emit('cell');
  }

  /** Bytes in MiB, the unit of the papers' tables, with a decimal where `whole` is small. */
  const mib = (count, whole = count) => (count / 2 ** 20).toFixed(whole < 100 * 2 ** 20 ? 1 : 0);
  const showMib = (count, whole = count) => `${mib(count, whole)} MiB`;

  return {
    bus, mib, showMib, emit, follow, load, set, step, kept, keptFrom, resident, memory, showBytes, showPart, look, link, unpack, clamp,
    get table() { return table; },
    get budget() { return fixed ? table.percents[0] : budget; },
    get fixed() { return fixed; },
    get dynamic() { return Boolean(table) && table.static === false; }, // decides while it draws: no schedule
    get cell() { return cell; },
    get dark() { return document.body.classList.contains('dark'); },
    typeOf(layer, head) { return table.typeNames[table.types[layer * table.heads + head]] || null; },
    /** Kept cells [layer][head][scale], for tests and for the curious. */
    keptCells() {
      const range = (n) => Array.from({ length: n }, (_, i) => i);
      return range(table.layers).map((l) => range(table.heads).map((h) => range(table.cached).map((s) => kept(l, h, s))));
    },
  };
};
window.heatkv = window.heatkvStore();
window.heatkvPublished = window.heatkvStore();
/** The store that a part draws from: that of the tab it stands in. */
window.heatkvOf = (element) => (element.closest('#tab-budgets') ? window.heatkvPublished : window.heatkv);
