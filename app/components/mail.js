/* Hands what Python sends to whoever listens on the page. value: {to: name, ...}. */
const hand = () => { if (props.value && props.value.to) window.heatkv.emit(`mail-${props.value.to}`, props.value); };
watch('value', hand);
