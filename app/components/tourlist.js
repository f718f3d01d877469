/* The steps of the tour as a list; choosing one starts there. value: {steps: [{title, text}]}. */
const make = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text });
function show() {
  element.querySelector('ol').replaceChildren(...((props.value && props.value.steps) || []).map((step, index) => {
    const item = document.createElement('li');
    const button = Object.assign(document.createElement('button'), { type: 'button' });
    button.append(make('span', 'number', index + 1), make('b', '', step.title), make('span', 'text', step.text));
    button.addEventListener('click', () => window.heatkv.emit('tour', index));
    item.append(button);
    return item;
  }));
}
watch('value', show);
show();
