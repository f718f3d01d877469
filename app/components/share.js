/* Copies the address of this view; where the clipboard is closed to us, shows it to be copied by hand. */
const field = element.querySelector('input');
const done = element.querySelector('.done');
element.querySelector('button').addEventListener('click', async () => {
  const link = window.heatkv.link(true);
  try {
    await navigator.clipboard.writeText(link);
    field.hidden = true;
    done.textContent = 'Copied.';
  } catch {
    field.hidden = false;
    field.value = link;
    field.select();
    done.textContent = 'Copy it from here.';
  }
  setTimeout(() => { done.textContent = ''; }, 4000);
});
