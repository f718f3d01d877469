/* QR codes of addresses (ISO/IEC 18004): bytes, error correction level M, the smallest version that holds the text.
 *
 * `window.heatkvQr.modules(text)` gives rows of 0 (light) and 1 (dark), null for a text of more than 2331 bytes;
 * `window.heatkvQr.paint(canvas, text)` draws them with the quiet zone around.
 */
window.heatkvQr = (() => {
  // Level M, by version: check bytes of a block, and blocks.
  const CHECK = [10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26, 26, ...Array(19).fill(28)];
  const BLOCKS = [1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16, 17, 17, 18, 20, 21, 23, 25, 26, 28, 29, 31, 33, 35, 37, 38, 40, 43, 45, 47, 49];
  const MASKS = [
    (y, x) => (y + x) % 2, (y) => y % 2, (y, x) => x % 3, (y, x) => (y + x) % 3, (y, x) => (Math.floor(y / 2) + Math.floor(x / 3)) % 2,
    (y, x) => ((y * x) % 2) + ((y * x) % 3), (y, x) => (((y * x) % 2) + ((y * x) % 3)) % 2, (y, x) => (((y + x) % 2) + ((y * x) % 3)) % 2,
  ];
  const QUIET = 4;
  const range = (n) => Array.from({ length: n }, (_, i) => i);

  // --- check bytes: the remainder of a division of polynomials over GF(256) ----------------------------------------

  const [power, log] = [new Uint8Array(255), new Uint8Array(256)];
  for (let i = 0, v = 1; i < 255; i += 1) { power[i] = v; log[v] = i; v = (v << 1) ^ (v & 128 ? 0x11d : 0); }
  const times = (a, b) => (a && b ? power[(log[a] + log[b]) % 255] : 0);

  function divisor(degree) {
    let found = [1];
    for (const i of range(degree)) found = range(found.length + 1).map((k) => (found[k] || 0) ^ times(found[k - 1] || 0, power[i]));
    return found.slice(1);
  }
  function remainder(data, by) {
    const rest = Array(by.length).fill(0);
    for (const byte of data) {
      const factor = byte ^ rest.shift();
      rest.push(0);
      by.forEach((value, i) => { rest[i] ^= times(value, factor); });
    }
    return rest;
  }

  // --- what is written: length and bytes, in blocks, each with its check bytes, taken in turns ----------------------

  function places(version) {
    const count = version < 2 ? 0 : Math.floor(version / 7) + 2;
    const step = version === 32 ? 26 : Math.ceil((4 * version + 4) / (2 * count - 2)) * 2;
    return count ? [6, ...range(count - 1).map((i) => 4 * version + 10 - (count - 2 - i) * step)] : [];
  }
  function capacity(version) { // bytes of all kinds
    const count = places(version).length;
    const bits = (16 * version + 128) * version + 64 - (count ? (25 * count - 10) * count - 55 : 0) - (version > 6 ? 36 : 0);
    return Math.floor(bits / 8);
  }
  const room = (version) => capacity(version) - CHECK[version - 1] * BLOCKS[version - 1];
  const bits = (value, count) => range(count).map((i) => (value >>> (count - 1 - i)) & 1);

  function codewords(bytes, version) {
    const size = room(version);
    const stream = [0, 1, 0, 0, ...bits(bytes.length, version < 10 ? 8 : 16), ...bytes.flatMap((byte) => bits(byte, 8))];
    stream.push(...Array(Math.min(4, 8 * size - stream.length)).fill(0));
    while (stream.length % 8) stream.push(0);
    const data = range(stream.length / 8).map((i) => stream.slice(8 * i, 8 * i + 8).reduce((sum, bit) => 2 * sum + bit, 0));
    for (let i = 0; data.length < size; i += 1) data.push(i % 2 ? 0x11 : 0xec);
    const [blocks, by] = [BLOCKS[version - 1], divisor(CHECK[version - 1])];
    const short = Math.floor(size / blocks);
    let at = 0;
    const parts = range(blocks).map((i) => { const part = data.slice(at, at + short + (i >= blocks - (size % blocks) ? 1 : 0)); at += part.length; return part; });
    const turns = (lists) => range(Math.max(...lists.map((list) => list.length))).flatMap((i) => lists.filter((list) => i < list.length).map((list) => list[i]));
    return [...turns(parts), ...turns(parts.map((part) => remainder(part, by)))];
  }

  // --- where it is written ------------------------------------------------------------------------------------------

  /** The patterns by which a reader finds its way: rows of 0 and 1, null where data goes. */
  function frame(version) {
    const side = 4 * version + 17;
    const grid = range(side).map(() => Array(side).fill(null));
    const square = (cy, cx, radius, dark) => { for (let y = -radius; y <= radius; y += 1) for (let x = -radius; x <= radius; x += 1) if (grid[cy + y] && grid[cy + y][cx + x] !== undefined) grid[cy + y][cx + x] = Number(dark(Math.max(Math.abs(y), Math.abs(x)))); };
    for (const i of range(side)) grid[6][i] = grid[i][6] = 1 - (i % 2);
    for (const [y, x] of [[3, 3], [3, side - 4], [side - 4, 3]]) square(y, x, 4, (d) => d !== 2 && d !== 4);
    const lined = places(version);
    const last = lined.length - 1;
    lined.forEach((y, i) => lined.forEach((x, j) => { if (!((i === 0 && (j === 0 || j === last)) || (i === last && j === 0))) square(y, x, 2, (d) => d !== 1); }));
    for (const i of range(9)) { grid[8][i] ??= 0; grid[i][8] ??= 0; }
    for (const i of range(8)) { grid[8][side - 1 - i] = 0; grid[side - 1 - i][8] = 0; }
    grid[side - 8][8] = 1;
    if (version > 6) {
      let rest = version;
      for (const _ of range(12)) rest = (rest << 1) ^ ((rest >>> 11) * 0x1f25);
      bits((version << 12) | rest, 18).reverse().forEach((bit, i) => { const [a, b] = [side - 11 + (i % 3), Math.floor(i / 3)]; grid[b][a] = bit; grid[a][b] = bit; });
    }
    return grid;
  }

  function writeFormat(grid, mask) {
    const side = grid.length;
    let rest = mask; // level M is 00
    for (const _ of range(10)) rest = (rest << 1) ^ ((rest >>> 9) * 0x537);
    const bit = bits(((mask << 10) | rest) ^ 0x5412, 15).reverse();
    for (const i of range(15)) {
      grid[i < 6 ? i : i < 8 ? i + 1 : side - 15 + i][8] = bit[i];
      grid[8][i < 8 ? side - 1 - i : i < 9 ? 7 : 14 - i] = bit[i];
    }
  }

  /** Data from the lower right, up and down in columns of two, but for the column of the timing pattern. */
  function fill(grid, words, mask) {
    const stream = words.flatMap((byte) => bits(byte, 8));
    const side = grid.length;
    const made = grid.map((row) => row.slice());
    let at = 0;
    for (let right = side - 1, up = true; right > 0; right -= 2, up = !up) {
      if (right === 6) right = 5;
      for (const i of range(side)) {
        const y = up ? side - 1 - i : i;
        for (const x of [right, right - 1]) if (grid[y][x] === null) { made[y][x] = (stream[at] || 0) ^ Number(MASKS[mask](y, x) === 0); at += 1; }
      }
    }
    writeFormat(made, mask);
    return made;
  }

  /** How hard a code is to read: long runs, squares, what looks like a finder, more of one colour than of the other. */
  function penalty(grid) {
    const side = grid.length;
    const rows = [...grid, ...range(side).map((x) => grid.map((row) => row[x]))].map((row) => row.join(''));
    let sum = 0;
    for (const row of rows) {
      for (const run of row.match(/0{5,}|1{5,}/g) || []) sum += run.length - 2;
      for (let i = 0; i + 11 <= side; i += 1) { const part = row.slice(i, i + 11); if (part === '10111010000' || part === '00001011101') sum += 40; }
    }
    for (let y = 0; y + 1 < side; y += 1) for (let x = 0; x + 1 < side; x += 1) if (grid[y][x] === grid[y][x + 1] && grid[y][x] === grid[y + 1][x] && grid[y][x] === grid[y + 1][x + 1]) sum += 3;
    const dark = grid.flat().reduce((total, v) => total + v, 0);
    return sum + 10 * Math.floor(Math.abs((20 * dark) / (side * side) - 10));
  }

  function modules(text) {
    const bytes = [...new TextEncoder().encode(text)];
    const version = range(40).map((i) => i + 1).find((v) => 8 * room(v) >= 4 + (v < 10 ? 8 : 16) + 8 * bytes.length);
    if (!version) return null;
    const [grid, words] = [frame(version), codewords(bytes, version)];
    const made = range(8).map((mask) => fill(grid, words, mask));
    const costs = made.map(penalty);
    return made[costs.indexOf(Math.min(...costs))];
  }

  function paint(canvas, text, pixels = 4) {
    const grid = modules(text);
    canvas.hidden = !grid;
    if (!grid) return;
    canvas.width = canvas.height = pixels * (grid.length + 2 * QUIET);
    const pen = canvas.getContext('2d');
    pen.fillStyle = '#fff';
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = '#000';
    grid.forEach((row, y) => row.forEach((dark, x) => { if (dark) pen.fillRect(pixels * (x + QUIET), pixels * (y + QUIET), pixels, pixels); }));
  }
  return { modules, paint };
})();
