/* What the tokens of one line have read of the picture so far: a mark on every token, darker where they read more.
 *
 * `view` is LineView of heatkv/views/lines.py with its numbers unpacked; row 0 is the mean over the line, row 1 + i token i.
 */
window.heatkvSight = (() => {
  const BLANK = 65535; // not drawn yet
  const cells = (view) => view.size[0] * view.size[1];
  const picture = (view, row) => view.picture.subarray(row * cells(view), (row + 1) * cells(view));
  const prompt = (view, row) => { const n = view.condition.length / (view.queries + 1); return view.condition.subarray(row * n, (row + 1) * n); };
  const share = (view, row, level) => (level === BLANK ? 0 : (level / 65534) * view.peaks[row]);

  /** Of the attention of a row: how much goes to every segment, the condition first. */
  function shares(view, row) {
    const [height, width] = view.size;
    const levels = picture(view, row);
    const sum = (part) => part.reduce((total, level) => total + share(view, row, level), 0);
    return [sum(prompt(view, row)), ...Array.from({ length: height }, (_, y) => sum(levels.subarray(y * width, (y + 1) * width)))];
  }

  function mark(pen, level, x, y, w, h) {
    const t = Math.sqrt(level / 65534); // the root, so that faint attention is seen as well
    pen.fillStyle = `rgba(${Math.round(235 - 75 * t)}, ${Math.round(120 - 70 * t)}, 10, ${(0.92 * t).toFixed(3)})`;
    pen.fillRect(x, y, w, h);
  }
  function hatch(pen, x, y, w, h, step) {
    pen.save();
    pen.beginPath(); pen.rect(x, y, w, h); pen.clip();
    pen.strokeStyle = 'rgba(90, 90, 100, 0.75)';
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (let d = -h; d < w; d += step) { pen.moveTo(x + d, y + h); pen.lineTo(x + d + h, y); }
    pen.stroke();
    pen.restore();
  }

  /** The picture, pale, with what row `row` read of it. `gone(line)` says whether a line is not cached. */
  function paint(canvas, image, view, row, gone) {
    const [height, width] = view.size;
    const [w, h] = [canvas.width / width, canvas.height / height];
    const pen = canvas.getContext('2d');
    pen.fillStyle = '#fff';
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 0.45;
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 1;
    picture(view, row).forEach((level, i) => {
      const [x, y] = [(i % width) * w, Math.floor(i / width) * h];
      if (level === BLANK) { pen.fillStyle = 'rgba(236, 234, 231, 0.93)'; pen.fillRect(x, y, w + 0.5, h + 0.5); } else mark(pen, level, x, y, w + 0.5, h + 0.5);
    });
    for (let y = 0; y < view.line; y += 1) if (gone(y)) hatch(pen, 0, y * h, canvas.width, h, 9);
  }

  /** The tokens of the condition, a cell each. */
  function paintPrompt(canvas, view, row) {
    const levels = prompt(view, row);
    const pen = canvas.getContext('2d');
    const w = canvas.width / levels.length;
    pen.fillStyle = '#fff';
    pen.fillRect(0, 0, canvas.width, canvas.height);
    levels.forEach((level, i) => { mark(pen, level, i * w, 0, w, canvas.height); pen.strokeStyle = '#b0aba7'; pen.strokeRect(i * w, 0, w, canvas.height); });
  }
  return { shares, paint, paintPrompt };
})();
