/* Small things that every part needs: numbers in words, bytes from Python, elements. Text from outside only ever reaches
 * `textContent`. */
window.heatkvWords = (() => {
  const unpack = (text, Type) => {
    const bytes = Uint8Array.from(atob(text || ''), (c) => c.charCodeAt(0));
    return new Type(bytes.buffer, 0, Math.floor(bytes.length / Type.BYTES_PER_ELEMENT));
  };
  const clamp = (value, count) => Math.max(0, Math.min(count - 1, Math.trunc(Number(value) || 0)));
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const make = (tag, className, text) => Object.assign(document.createElement(tag), { className: className || '', textContent: text ?? '' });

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
    return `${((part * b.count) / whole).toFixed(b.digits)} of ${b.count.toFixed(b.digits)} ${b.unit}`;
  }
  /** Bytes in MiB, the unit of the papers' tables, with a decimal where `whole` is small. */
  const mib = (count, whole = count) => (count / 2 ** 20).toFixed(whole < 100 * 2 ** 20 ? 1 : 0);
  const showMib = (count, whole = count) => `${mib(count, whole)} MiB`;
  const percent = (v) => (v >= 0.0995 ? `${Math.round(100 * v)} %` : `${(100 * v).toFixed(1)} %`);
  /** Types of heads, in a word and in a few. */
  const TYPES = {
    itself: ['itself', 'looks at itself'], previous: ['previous', 'at the previous one'], between: ['earlier', 'further back'], sinks: ['coarsest', 'at the coarsest'],
    local: ['near', 'looks near'], far: ['far', 'looks far up'], condition: ['prompt', 'looks at the prompt'], spread: ['spread', 'spreads'],
  };
  const typeWord = (name) => (TYPES[name] || [name])[0] || '';
  const typeWords = (name) => (TYPES[name] || [name, name])[1] || '';
  const safeImage = (url) => typeof url === 'string' && url.startsWith('data:image/png;base64,');
  return { unpack, clamp, range, make, showBytes, showPart, mib, showMib, percent, typeWord, typeWords, safeImage };
})();
