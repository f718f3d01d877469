/* Saves a file that Python sends. value: {name, type, data (base64), id}; the same id is saved once. */
let last = null;
watch('value', () => {
  const file = props.value;
  if (!file || file.id === last) return;
  last = file.id;
  const url = URL.createObjectURL(new Blob([window.heatkv.unpack(file.data, Uint8Array)], { type: file.type }));
  const link = Object.assign(document.createElement('a'), { href: url, download: file.name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});
