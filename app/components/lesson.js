/* One lesson at a time: it sets the real controls, asks, and tells what was counted. It stands in the page, above what it
 * speaks of, and covers nothing; leaving puts the controls back. value: {lessons: [...], see app/lessons/texts.py}. */
const heatkv = window.heatkv;
const find = (name) => element.querySelector(`.${name}`);
const lessons = () => (props.value && props.value.lessons) || [];
let at = null;
let before = null; // the view before the first lesson
let guessed = null;
let stated = null; // what the lesson in view shows; null while the controls are being set to it

const snapshot = () => ({ ...heatkv.subject(), budget: heatkv.asked, policy: heatkv.view.policy, storage: heatkv.view.storage, a: heatkv.view.a, mode: heatkv.view.mode, colour: heatkv.view.colour, forget: heatkv.edits.toText(), head: [heatkv.cell.layer, heatkv.cell.head] });

/** Set the controls; the pictures follow. */
function apply(view) {
  const { budget, forget, head, a, knocked, ...rest } = view;
  if (a !== undefined) rest.a = typeof a === 'string' ? (a ? heatkv.readRecipe(a) : heatkv.FULL) : a;
  heatkv.set(rest, 'look');
  if (rest.prompt !== undefined) heatkv.emit('given');
  if (budget !== undefined) heatkv.setBudget(budget);
  const { prompt, seed, sampling } = heatkv.subject();
  const own = at === null ? {} : lessons()[at].view;
  if (knocked && own.prompt === prompt && own.seed === seed && !Object.keys(sampling).length) { // measured before, so that nobody has to wait
    const of = heatkv.table.layers * heatkv.table.heads;
    heatkv.colours.take({ knocked: { ...knocked, done: of, of, subject: heatkv.subjectKey() } });
  }
  if (head) heatkv.look(head[0], head[1], heatkv.cell.scale);
  if (forget !== undefined) heatkv.setEdits(forget);
  if (!heatkv.tableFits()) heatkv.emit('want-table'); else heatkv.emit('view');
}

/** What of the view decides the pictures. A link states the lesson only while they are the lesson's own. */
function pictured() { const { mode, colour, head, ...rest } = snapshot(); return JSON.stringify(rest); }
for (const name of ['view', 'budget', 'look']) heatkv.bus.addEventListener(name, () => {
  if (element.isConnected && at !== null && stated !== null) heatkv.view.lesson = pictured() === stated ? at : null;
});

function mark(selector) {
  document.querySelectorAll('.lesson-target').forEach((node) => node.classList.remove('lesson-target'));
  const target = selector && document.querySelector(selector);
  if (target) target.classList.add('lesson-target');
}

function show() {
  const lesson = at === null ? null : lessons()[at];
  find('lesson').hidden = !lesson;
  mark(lesson ? lesson.focus : null);
  document.body.classList.toggle('lesson-of-map', Boolean(lesson && lesson.focus.startsWith('#headmap')));
  document.body.classList.toggle('lesson-hides-types', Boolean(lesson && lesson.hides_types && guessed === null));
  if (!lesson) return;
  find('title').textContent = `${at + 1}. ${lesson.title}`;
  find('text').textContent = lesson.text;
  find('question').textContent = lesson.question;
  showOther();
  find('count').textContent = `${at + 1} of ${lessons().length}`;
  find('back').disabled = at === 0;
  find('next').textContent = at + 1 < lessons().length ? 'Next' : 'Done';
  find('options').replaceChildren(...lesson.options.map((text, index) => {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: text, disabled: guessed !== null });
    if (guessed !== null && index === lesson.right) button.className = 'right'; else if (guessed === index) button.className = 'wrong';
    button.addEventListener('click', () => { guessed = index; show(); if (Object.keys(lesson.reveal).length) apply(lesson.reveal); find('title').focus({ preventScroll: true }); });
    return button;
  }));
  const told = (yes) => `${yes ? 'Yes' : 'No'}: ${lesson.options[lesson.right]}. ${lesson.answer}`;
  find('room').textContent = told(true);
  find('answer').textContent = guessed === null ? '' : told(guessed === lesson.right);
}

function showOther() {
  const theirs = heatkv.fixed ? 'your schedule file' : heatkv.view.source === 'session' ? 'your calibration' : '';
  find('other').hidden = !theirs;
  find('other').textContent = `The pictures follow ${theirs}; what is told here was counted with the bundled calibration. Stop using it to see the lesson's own.`;
}
heatkv.follow(element, ['table'], showOther);

function go(index) {
  const next = index >= 0 && index < lessons().length ? index : null;
  if (at === null && next !== null && !before) before = snapshot();
  at = next;
  guessed = stated = null;
  heatkv.set({ lesson: at }, 'look');
  show();
  if (at === null) {
    if (before) apply(before);
    before = null;
    document.querySelector('#tab-explore-button')?.focus({ preventScroll: true });
    return;
  }
  if (heatkv.view.tab !== 'explore') document.querySelector('#tab-explore-button')?.click();
  apply({ sampling: {}, storage: '', ...lessons()[at].view });
  stated = pictured();
  setTimeout(arrive, 60);
}
/** The lesson stands right under what stays on top, so that what it speaks of is on the screen with it. */
function arrive(tries = 40) {
  if (at === null) return;
  if (!find('lesson').offsetParent && tries) { setTimeout(() => arrive(tries - 1), 50); return; } // its tab is still to be shown
  mark(lessons()[at].focus); // a part that is slow to come has just come
  const bar = document.querySelector('#dial');
  const above = bar && getComputedStyle(bar).position === 'sticky' ? bar.offsetHeight : 0;
  window.scrollTo({ top: Math.max(0, find('lesson').getBoundingClientRect().top + window.scrollY - above - 10) });
  find('title').focus({ preventScroll: true });
}

find('back').addEventListener('click', () => go(at - 1));
find('next').addEventListener('click', () => go(at + 1));
find('leave').addEventListener('click', () => go(-1));
element.addEventListener('keydown', (event) => { if (event.key === 'Escape') go(-1); });
heatkv.bus.addEventListener('lesson', (event) => { if (element.isConnected) go(event.detail); });
/** Begin at a lesson that the address asks for. The page is still being built, which moves it: so it arrives again. */
function open(index) {
  let own = false;
  for (const name of ['wheel', 'touchstart', 'keydown', 'pointerdown']) window.addEventListener(name, () => { own = true; }, { once: true, passive: true });
  go(index);
  for (const ms of [400, 1000, 2000]) setTimeout(() => { if (!own && at === index) arrive(); }, ms);
}
let begun = false;
heatkv.follow(element, ['table'], () => {
  if (begun || !heatkv.defaults) return;
  begun = true;
  // The address may ask for a lesson: what else it says of the view is the lesson's to set.
  if (heatkv.view.lesson !== null) { const wanted = heatkv.view.lesson; if (wanted >= 0 && wanted < lessons().length) setTimeout(() => open(wanted), 0); else heatkv.set({ lesson: null }, 'look'); }
});
