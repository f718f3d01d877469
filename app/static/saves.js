/* Files of the head map as it stands: SVG and PNG to print, CSV to reckon with; and how to cite what is in use. */
window.heatkvSaves = (() => {
  const save = (name, type, data) => {
    const url = URL.createObjectURL(new Blob([data], { type }));
    const link = Object.assign(document.createElement('a'), { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  const policy = (h) => (h.fixed ? h.table.policy : h.recipe().policy); // a schedule from a file has its own
  const name = (h, ending) => `${h.table.model || 'model'}-${policy(h)}-${h.budget}.${ending}`.replace(/[^A-Za-z0-9.+-]/g, '-');
  const what = (h) => `${h.table.model}, ${h.label(h.recipe())}${h.fixed ? ` (${policy(h)}, ${h.budget} %)` : ''} of the full cache; colours: ${h.colours.kind()}`;

  /** The whole map, a block a layer, as an SVG document. Text is escaped by the serialiser. */
  function drawing(h) {
    const t = h.table;
    const [cell, row, gap, left, top] = [30, 14, 12, 60, 46];
    const columns = Math.min(4, t.layers);
    const [w, hgt] = [left + t.cached * cell, t.heads * row + 30];
    const p = h.colours.palette();
    const ns = 'http://www.w3.org/2000/svg';
    const node = (tag, attributes, text) => { const n = document.createElementNS(ns, tag); for (const [k, v] of Object.entries(attributes)) n.setAttribute(k, v); if (text !== undefined) n.textContent = text; return n; };
    const [width, height] = [columns * (w + gap) + 20, Math.ceil(t.layers / columns) * (hgt + gap) + top + 10];
    const svg = node('svg', { xmlns: ns, width, height, viewBox: `0 0 ${width} ${height}`, 'font-family': 'system-ui, sans-serif', 'font-size': 10 });
    svg.append(node('rect', { width, height, fill: h.dark ? '#18191f' : '#ffffff' }), node('text', { x: 10, y: 20, 'font-size': 13, fill: p.ink }, what(h)), node('text', { x: 10, y: 36, fill: p.ink }, `${h.colours.ends().join(' to ')}; crossed: not in the cache`));
    for (const l of h.range(t.layers)) {
      const [x0, y0] = [10 + (l % columns) * (w + gap), top + Math.floor(l / columns) * (hgt + gap)];
      svg.append(node('text', { x: x0, y: y0 + 10, fill: p.ink, 'font-weight': 600 }, `layer ${l + 1}`));
      for (const s of h.range(t.cached)) svg.append(node('text', { x: x0 + left + s * cell + cell / 2, y: y0 + 10, fill: p.ink, 'text-anchor': 'middle' }, h.colours.columnLabel(s)));
      for (const head of h.range(t.heads)) {
        svg.append(node('text', { x: x0 + left - 6, y: y0 + 24 + head * row, fill: p.ink, 'text-anchor': 'end' }, `head ${head + 1}`));
        for (const s of h.range(t.cached)) {
          const [x, y] = [x0 + left + s * cell, y0 + 15 + head * row];
          const kept = h.colours.held(l, head, s);
          const colour = h.colours.shade(p, h.colours.level(l, head, s));
          svg.append(node('rect', { x, y, width: cell - 2, height: row - 2, rx: 2, fill: h.colours.css(kept ? colour : h.colours.mix(p.gone, colour, 0.22)), stroke: kept ? 'none' : h.colours.css(p.line) }));
          if (!kept) svg.append(node('path', { d: `M${x} ${y + row - 2}L${x + cell - 2} ${y}`, stroke: h.colours.css(p.line) }));
        }
      }
    }
    return { text: new XMLSerializer().serializeToString(svg), width, height };
  }

  function png(h) {
    const { text, width, height } = drawing(h);
    const image = new Image();
    image.onload = () => {
      const canvas = Object.assign(document.createElement('canvas'), { width: 2 * width, height: 2 * height });
      canvas.getContext('2d').drawImage(image, 0, 0, 2 * width, 2 * height);
      canvas.toBlob((blob) => save(name(h, 'png'), 'image/png', blob), 'image/png');
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  function csv(h) {
    const t = h.table;
    const lines = [['layer', 'head', 'type', h.colours.byDistance() ? 'distance' : t.word, 'tokens', 'kept', 'forgotten_by_hand', `colour_${h.colours.kind()}`]];
    for (const l of h.range(t.layers)) for (const head of h.range(t.heads)) for (const s of h.range(t.cached)) {
      const at = h.colours.level(l, head, s);
      lines.push([l + 1, head + 1, h.typeOf(l, head) || '', h.colours.columnName(s), ...(h.colours.byDistance() ? ['', '', ''] : [t.tokens[s], h.dynamic ? '' : Number(h.kept(l, head, s)), Number(h.forgotten(l, head, s))]), at === null ? '' : at.toFixed(4)]);
    }
    save(name(h, 'csv'), 'text/csv', `${lines.map((line) => line.join(',')).join('\n')}\n`);
  }

  /** The entries of the methods in use; all of them where none is found. */
  function cite(text, keys) {
    const entries = text.split(/\n(?=@)/).filter((entry) => entry.startsWith('@'));
    const found = entries.filter((entry) => keys.some((key) => entry.startsWith(`${entry.split('{')[0]}{${key},`)));
    return `${(found.length ? found : entries).join('\n')}\n`;
  }

  return {
    'map-svg': (h) => save(name(h, 'svg'), 'image/svg+xml', drawing(h).text),
    'map-png': png,
    csv,
    bib: (h) => save('heatkv-explorer.bib', 'text/plain', cite(h.defaults.references, ['heatkv', policy(h)])),
  };
})();
