/* What is being looked at: prompt, seed, sampling, recipes A and B, and how they are shown. One place, and the address of the page.
 *
 * B follows the controls. A is pinned: the full cache, until somebody pins another recipe. The parts call `set`, and hear
 * 'view' (something else is asked for: the picture has to follow), 'budget' (the slider moves) and 'look' (shown
 * otherwise, same pictures).
 */
window.heatkv = (() => {
  const plans = window.heatkvPlans();
  const FULL = { policy: 'full', percent: 100, source: 'bundled', basis: '', forget: '', storage: '' };
  const view = { prompt: '', seed: 0, sampling: {}, policy: 'heatkv', source: 'bundled', basis: '', storage: '', a: FULL, mode: 'side', colour: 'auto', tab: 'explore', lesson: null, classMode: false };
  const query = new URLSearchParams(location.search);
  view.classMode = query.get('class') === '1';
  const largeType = () => { document.documentElement.style.fontSize = view.classMode ? '20px' : ''; };
  largeType();
  /** Whether nobody but this computer can open the page's address. */
  const onlyHere = /^(localhost|127(\.\d+){3}|\[::1\])$/.test(location.hostname);
  const given = (key, fits = () => true) => { const v = query.get(key); return v !== null && v.length <= 20000 && fits(v) ? v : null; };
  const SHOWN = { mode: ['side', 'wipe', 'difference'], colour: ['auto', 'attention', 'distance', 'change', 'knockout', 'kept'] };
  let defaults = null;
  let percent = null; // asked for, before the table says which there are

  // How tokens are drawn: only what differs from the model's own, {name: number}. Guidance of 1 draws one row in place of two.
  const SAMPLING = ['guidance', 'temperature', 'top_k', 'top_p'];
  plans.countRows(() => (view.sampling.guidance === undefined || !plans.table.rows ? 1 : (view.sampling.guidance === 1 ? 1 : 2) / plans.table.rows));
  /** What is drawn whatever the recipe, for handlers, and as a text that tells it from others. */
  const subject = () => ({ prompt: view.prompt, seed: view.seed, sampling: view.sampling });
  const subjectKey = () => JSON.stringify(subject());

  /** The recipe that the controls stand for. `basis` tells calibrations and schedules of one source apart. A policy without
   * a plan has no cells to forget: the edits rest. */
  const recipe = () => ({ policy: view.policy, percent: plans.table ? plans.table.percents[plans.step()] : percent, source: view.source, basis: view.basis, forget: plans.dynamic ? '' : plans.edits.toText(), storage: plans.dynamic || plans.fixed ? '' : view.storage });
  /** A recipe in words. */
  const label = (r) => (r.source === 'uploaded' ? 'your schedule' : r.policy === 'full' ? 'full cache' : `${defaults.titles[r.policy] || r.policy}, ${r.percent} %${r.storage ? `, ${defaults.storages[r.storage] || r.storage}` : ''}${r.source === 'session' ? ', your calibration' : ''}`) + (r.forget ? ', edited' : '');
  /** Whether the table is of the policy and storage that are asked for: another one may be on its way. */
  const tableFits = () => plans.fixed || (plans.table.policy === view.policy && plans.table.asked === view.storage);
  const same = (x, y) => ['policy', 'percent', 'source', 'basis', 'forget', 'storage'].every((key) => (x[key] || '') === (y[key] || ''));

  // A recipe in the address: policy, percent, forgotten cells, storage. What plans are made from can not be in it.
  const pack = (r) => [r.policy, r.percent, r.forget, r.storage].join('~').replace(/~+$/, '');
  function unpack(text) {
    const [policy, number, forget, storage] = String(text).split('~');
    return { policy, percent: Number(number) || 100, source: 'bundled', basis: '', forget: forget || '', storage: storage || '' };
  }

  /** Take the defaults from Python and the wishes from the address, once. */
  function begin(value) {
    if (defaults) return;
    defaults = value;
    const seed = given('seed', (v) => /^\d{1,10}$/.test(v) && Number(v) < 2 ** 32);
    Object.assign(view, {
      prompt: given('prompt', (v) => v.trim() && v.length <= 1000) ?? value.prompt,
      seed: seed === null ? value.seed : Number(seed),
      policy: given('policy', (v) => value.policies.includes(v)) ?? value.policy,
      storage: given('storage', (v) => v.length <= 20) ?? '',
      a: given('a', (v) => ['full', ...value.policies].includes(unpack(v).policy)) ? unpack(query.get('a')) : FULL,
      tab: given('tab', (v) => value.tabs.includes(v)) ?? 'explore',
      lesson: given('lesson', (v) => /^\d{1,2}$/.test(v)) === null ? null : Number(query.get('lesson')) - 1,
    });
    for (const name of SAMPLING) { const number = given(name, (v) => /^\d{1,4}(\.\d{1,6})?$/.test(v)); if (number !== null) view.sampling[name] = Number(number); }
    for (const [key, names] of Object.entries(SHOWN)) view[key] = given(key, (v) => names.includes(v)) ?? view[key];
    percent = Number(given('budget', (v) => Number(v) >= 1 && Number(v) <= 100) ?? value.percent);
    plans.setBudget(percent);
    const head = given('head', (v) => /^\d{1,4}\.\d{1,4}$/.test(v));
    value.at = head ? head.split('.').map((n) => Number(n) - 1) : value.head;
    value.forget = given('forget') || '';
  }

  /** Change what is asked for. `how` says what the change means to others. Another tab is another entry of the history, so
   * that Back leads to the one before and not out of the page. */
  function set(change, how = 'view') {
    const turned = change.tab && change.tab !== view.tab && change.tab !== shownTab();
    Object.assign(view, change);
    if (turned) history.pushState(null, '', defaults && plans.table ? themed(link(false)) : location.href);
    if ('classMode' in change) largeType();
    plans.emit(how);
    writeAddress();
  }

  function facts(whole) {
    const b = recipe();
    const all = { prompt: view.prompt, seed: view.seed, ...view.sampling, budget: b.percent, policy: b.policy, storage: b.storage, forget: b.forget, a: same(view.a, FULL) ? '' : pack(view.a),
      mode: view.mode, colour: view.colour, tab: view.tab, head: `${plans.cell.layer + 1}.${plans.cell.head + 1}`, lesson: view.lesson === null ? '' : view.lesson + 1, class: view.classMode ? '1' : '' };
    const usual = { ...defaults, budget: defaults.percent, forget: '', a: '', mode: 'side', colour: 'auto', tab: 'explore', head: `${defaults.head[0] + 1}.${defaults.head[1] + 1}`, lesson: '', class: '' };
    return Object.entries(all).filter(([key, v]) => v !== '' && (whole ? !['mode', 'colour', 'tab'].includes(key) || v !== usual[key] : String(v) !== String(usual[key])));
  }
  const LONGEST = 1800; // of the forgotten cells; programs cut longer addresses
  /** The address of this view; `whole` spells out what equals the defaults too, so that it stays what it is. */
  function link(whole) {
    const kept = facts(whole).filter(([, v]) => String(v).length <= LONGEST);
    const text = new URLSearchParams(kept.map(([key, v]) => [key, String(v)])).toString();
    return `${whole ? home() : location.origin + location.pathname}${text ? `?${text}` : ''}`;
  }
  /** The address of this model's page, also where another model's comes first one day. */
  const home = () => `${location.origin}${location.pathname}${location.pathname.endsWith('/') ? defaults.home : ''}`;
  /** What a link can not carry, in words; empty where it carries all. */
  function notInLink() {
    const missing = [];
    if ([recipe().source, view.a.source].includes('session')) missing.push('your calibration');
    if ([recipe().source, view.a.source].includes('uploaded')) missing.push('your schedule file');
    if ([recipe().forget, view.a.forget].some((text) => text.length > LONGEST)) missing.push('so many forgotten cells (save the schedule)');
    return missing.join(' and ');
  }

  /** The address with what this one says of light or dark. */
  function themed(address) {
    const url = new URL(address, location.href);
    const theme = new URLSearchParams(location.search).get('__theme');
    if (theme === 'dark' || theme === 'light') url.searchParams.set('__theme', theme);
    return url;
  }
  let writing = null; // browsers refuse more than a few changes of the address a second
  function writeAddress() {
    clearTimeout(writing);
    writing = setTimeout(() => {
      if (!defaults || !plans.table) return; // a part that is quick on a machine that is slow
      history.replaceState(null, '', themed(link(false)));
    }, 250);
  }
  const shownTab = () => new URLSearchParams(location.search).get('tab') ?? 'explore';
  window.addEventListener('popstate', () => {
    const button = document.querySelector(`#tab-${shownTab()}-button`);
    if (defaults?.tabs.includes(shownTab()) && button) button.click(); // everything else stays as it is, and is written anew
  });
  plans.bus.addEventListener('budget', () => { if (defaults && plans.table) writeAddress(); });
  plans.bus.addEventListener('cell', () => { if (defaults) writeAddress(); });

  /** Forget or remember cells by hand, and say so. */
  function forget(cells) {
    if (plans.dynamic || !cells.length) return;
    plans.edits.toggle(cells);
    edited();
  }
  function edited() { plans.emit('edits'); plans.emit('view'); writeAddress(); }
  const undo = () => { if (plans.edits.undo()) edited(); };
  const redo = () => { if (plans.edits.redo()) edited(); };
  function setEdits(text) { plans.edits.set(text); edited(); }

  let last = 0;
  /** A number for a request, above those before it: of a kind only the newest counts. */
  const number = () => { last = Math.max(Date.now(), last + 1); return last; };

  /** What handlers in Python may need of the view. */
  const wish = () => ({ wish: true, prompt: view.prompt, seed: view.seed, policy: view.policy, storage: view.storage, percent: plans.budget });

  const api = { FULL, SAMPLING, onlyHere, wish, number, subject, subjectKey, readRecipe: unpack, view, begin, set, recipe, label, tableFits, same, link, home, themed, notInLink, forget, undo, redo, setEdits, get defaults() { return defaults; } };
  return Object.defineProperties(plans, Object.getOwnPropertyDescriptors(api));
})();
window.heatkv.colours = window.heatkvColours(window.heatkv);
window.heatkv.sight = window.heatkvSight;
window.heatkvPublished.colours = window.heatkvColours(window.heatkvPublished);
