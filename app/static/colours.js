/* What the colours of a head map say: attention (on lines also by distance), change of output, knock-out on this picture,
 * or tokens kept; what its columns are then; and what it looks like in both themes. Blue, grey and orange stay apart for colour-blind eyes. */
window.heatkvColours = (plans) => {
  const OCTAVES = 2; // attention's colours end at a quarter of the even share and at four times
  const mix = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
  const css = (rgb) => `rgb(${rgb.join(',')})`;
  const palette = () => (plans.dark
    ? { low: [88, 166, 255], mid: [62, 64, 72], high: [255, 158, 61], many: [172, 170, 174], gone: [24, 25, 31], line: [98, 100, 112], ink: '#e7e5e4' }
    : { low: [33, 102, 172], mid: [231, 229, 228], high: [214, 96, 22], many: [120, 113, 108], gone: [250, 250, 249], line: [176, 171, 167], ink: '#44403c' });

  const state = { knocked: null, kept: null };
  const cellAt = (l, h, s) => (l * plans.table.heads + h) * plans.table.cached + s;
  const knockedHere = () => (plans === window.heatkv && state.knocked && state.knocked.subject === plans.subjectKey() ? state.knocked : null);
  const most = () => Math.max(1e-9, ...(knockedHere() ? knockedHere().moved.flat().filter((v) => v !== null) : [0]));

  /** Whether there is such a choice on this map: what is known depends on the calibration and on the policy. */
  const offers = (colour) => ({ attention: true, distance: Boolean(plans.table.distance), change: plans.table.change.length > 0, knockout: plans === window.heatkv, kept: plans.dynamic })[colour];
  /** The colours in use: what was chosen, or what the policy in use goes by. */
  function kind() {
    const chosen = plans === window.heatkv ? plans.view.colour : 'auto';
    if (chosen !== 'auto' && offers(chosen)) return chosen;
    if (plans.table.needs === 'change' && plans.table.change.length) return 'change';
    return state.kept && plans.dynamic ? 'kept' : 'attention';
  }
  const two = () => kind() === 'attention' || kind() === 'distance'; // less and more than even; the others go from nothing to much
  const score = (l, h, s) => plans.table.cells[cellAt(l, h, s)] / 65535;
  const octaves = (share, even) => Math.max(-1, Math.min(1, Math.log2(Math.max(share, 1e-6) / even) / OCTAVES));

  // By distance a column is no segment: the condition first, then the line itself, one line up, and so on. The farthest
  // distance, which only the last line sees, has no column.
  const byDistance = () => kind() === 'distance';
  const distanceAt = (column) => (column ? column - 1 : plans.table.distance.names.length - 1);
  const far = (l, h, column) => plans.table.distance.shares[(l * plans.table.heads + h) * plans.table.distance.names.length + distanceAt(column)] / 65535;
  const columnName = (s) => (byDistance() ? plans.table.distance.names[distanceAt(s)] : plans.nameOf(s));
  const columnLabel = (s) => (byDistance() && s ? s - 1 : plans.labelOf(s));
  const held = (l, h, s, at) => byDistance() || plans.kept(l, h, s, at);

  /** -1 .. 1 for attention, 0 .. 1 for the others; null where nothing is known. */
  function level(l, h, s) {
    const t = plans.table;
    switch (kind()) {
      case 'change': return t.change.length ? t.change[cellAt(l, h, s)] / 65535 : null;
      case 'knockout': { const k = knockedHere(); const v = k && k.moved[l][h]; return v === null || v === undefined || !k ? null : v / most(); }
      case 'kept': return state.kept ? state.kept[cellAt(l, h, s)] / 65535 : null;
      case 'distance': return octaves(far(l, h, s), t.distance.even[distanceAt(s)]);
      default:
        if (t.kind === 'none') return 0;
        return t.kind === 'rank' ? 2 * score(l, h, s) - 1 : octaves(score(l, h, s), t.even[s]);
    }
  }
  function shade(p, at) {
    if (at === null) return p.gone;
    return at < 0 ? mix(p.mid, p.low, Math.min(1, -at)) : mix(p.mid, p.high, Math.min(1, at));
  }
  const times = (share, even) => (share / even).toFixed(share < 2 * even ? 2 : 1);
  /** What a cell's colour says, in words. */
  function says(l, h, s) {
    const t = plans.table;
    const at = level(l, h, s);
    switch (kind()) {
      case 'change': return at === null ? 'This calibration did not measure what outputs lose. ' : `outputs change without it more than without ${Math.round(100 * at)} % of all cells. `;
      case 'knockout': { const k = knockedHere(); return at === null ? 'not measured on this picture yet. ' : `without this head's memory the picture moves by ${k.moved[l][h].toFixed(1)} of 255 (${k.psnr[l][h].toFixed(1)} dB). `; }
      case 'kept': return at === null ? 'tokens kept are known once a token-wise policy has drawn. ' : `${Math.round(100 * at)} % of its tokens kept in this picture. `;
      case 'distance': { const even = t.distance.even[distanceAt(s)]; return `${(100 * far(l, h, s)).toFixed(1)} % of its attention, ${times(far(l, h, s), even)} times the even share; mean over the lines that see so far. `; }
      default:
        if (t.kind === 'none') return '';
        if (t.kind === 'rank') return s < t.sinkScales ? '' : `ranked ${Math.round(100 * score(l, h, s))} of 100 for this ${t.word}. `;
        return `${(100 * score(l, h, s)).toFixed(1)} % of its later attention, ${times(score(l, h, s), t.even[s])} times the even share. `;
    }
  }
  const ends = () => ({
    attention: plans.table.kind === 'rank' ? ['first to go', 'last to go'] : ['read ¼ of even', '4 × even'], distance: ['read ¼ of even', '4 × even'],
    change: ['outputs hardly change', 'change most'], knockout: ['picture stays', `moves by ${most() < 1e-6 ? '…' : most().toFixed(0)} of 255`], kept: ['no token kept', 'all kept'],
  })[kind()];
  return { ...state, palette, css, mix, offers, kind, two, level, shade, says, ends, knockedHere, most, byDistance, columnName, columnLabel, held,
    take(change) { Object.assign(state, change); plans.emit('colours'); } };
};
