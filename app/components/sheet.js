/* One prompt under every policy. value: {head, tiles: [{title, image, words, about, provenance}]} or null. */
const find = (path) => element.querySelector(path);
const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text ?? '' });

function show() {
  const value = props.value;
  find('.sheet').hidden = !value;
  if (!value) return;
  find('.head').textContent = value.head;
  find('.tiles').replaceChildren(...value.tiles.map((tile) => {
    const figure = make('figure');
    const url = String(tile.image);
    const whole = url.startsWith('data:image/png;base64,');
    figure.append(whole ? Object.assign(make('img'), { src: url, alt: `${tile.title}: ${tile.words}` }) : Object.assign(make('div'), { className: 'none' }));
    const caption = make('figcaption');
    caption.append(make('b', tile.title), make('span', tile.words), make('small', tile.provenance));
    figure.title = tile.about;
    figure.append(caption);
    return figure;
  }));
}
watch('value', show);
show();
