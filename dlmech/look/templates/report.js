// All that moves in a report: the theme, tables that sort and are searched, arrow keys between pages.
'use strict';

// ---- light or dark: as the system says until somebody chooses, then as chosen
const root = document.documentElement;
const kept = key => { try { return localStorage.getItem(key) } catch { return null } };
const keep = (key, value) => { try { localStorage.setItem(key, value) } catch { /* private: for this page */ } };
if (kept('dlmech-theme')) root.dataset.theme = kept('dlmech-theme');

function switchTheme() {
  const dark = root.dataset.theme ? root.dataset.theme == 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  keep('dlmech-theme', root.dataset.theme);
}

// ---- tables
const tell = (table, text) => {
  const said = document.querySelector(`form[data-for="${table.id}"] .said`);
  if (said) said.textContent = text;
};
const ranked = cell => {                       // numbers before texts, and what there is not last
  const text = cell.dataset.v ?? cell.textContent.trim();
  if (text == '' || text == '–') return [2, 0];
  const x = text == '∞' ? Infinity : Number(text.replace('−', '-').replaceAll(',', ''));
  return isNaN(x) ? [1, text] : [0, x];
};
const before = (a, b) => a < b ? -1 : a > b ? 1 : 0;

function sortBy(th) {
  const table = th.closest('table'), body = table.tBodies[0], i = th.cellIndex;
  const down = th.getAttribute('aria-sort') == 'ascending';
  for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
  th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const rows = [...body.rows].map(row => [ranked(row.cells[i]), row]);
  rows.sort(([[kind, a]], [[other, b]]) => before(kind, other) || (down ? -1 : 1) * before(a, b));
  body.append(...rows.map(([, row]) => row));
  show(table);
  tell(table, `sorted by ${th.textContent.trim()}, ${down ? 'descending' : 'ascending'}; ${count(table)}`);
}

// whether a row meets every word: labels joined by + share a cluster, a number is the filter's or a label's
function meets(row, words, layer, names) {
  if (layer && row.dataset.l != layer) return false;
  const clusters = row.dataset.c ? row.dataset.c.split('|').map(c => c.split(' ').map(i => names[i])) : [];
  const has = (cluster, asked) => cluster.some(name => /^\d+$/.test(asked) ? name == asked : name.includes(asked));
  return words.every(word =>
    word == row.dataset.f || clusters.some(c => word.split('+').filter(s => s).every(s => has(c, s))));
}

// marks the rows that are met, and shows as many of them as the table has room for
function show(table) {
  const limit = table.dataset.all ? Infinity : Number(table.dataset.limit ?? Infinity);
  let met = 0;
  for (const row of table.tBodies[0].rows) row.hidden = 'out' in row.dataset || ++met > limit;
  table.dataset.met = met;
  const more = document.querySelector(`.more[data-for="${table.id}"]`);
  if (more) [more.hidden, more.textContent] = [met <= limit, `Show all ${met.toLocaleString('en')}`];
}
const count = table => {
  const met = Number(table.dataset.met), limit = table.dataset.all ? met : Number(table.dataset.limit ?? met);
  return `${met.toLocaleString('en')} ${met == 1 ? 'row' : 'rows'}${met > limit ? `, the first ${limit} shown` : ''}`;
};

function search(form) {
  const table = document.getElementById(form.dataset.for), names = JSON.parse(table.dataset.names);
  const lower = names.map(name => name.toLowerCase().replaceAll(' ', '_'));
  const words = form.q.value.toLowerCase().split(/\s+/).filter(word => word);
  for (const row of table.tBodies[0].rows) {
    if (meets(row, words, form.layer?.value, lower)) delete row.dataset.out; else row.dataset.out = '';
  }
  show(table);
  tell(table, count(table));
}

// ---- a page
function explain() {                           // what the words mean, by their sentences of the glossary
  for (const a of document.querySelectorAll('a.term')) a.title = TERMS[a.hash.slice(1)];
  for (const button of document.querySelectorAll('[data-term]')) button.title = TERMS[button.dataset.term];
}

function arrows(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.defaultPrevented) return;
  if (event.target.closest('input, select, [role=region]')) return;
  const rel = { ArrowLeft: 'prev', ArrowRight: 'next' }[event.key];
  const link = rel && document.querySelector(`link[rel=${rel}]`);
  if (link) location.href = link.href;
}

document.addEventListener('DOMContentLoaded', () => {
  explain();
  document.getElementById('theme').onclick = switchTheme;
  for (const th of document.querySelectorAll('.sorts thead th')) th.querySelector('button').onclick = () => sortBy(th);
  const asked = new URLSearchParams(location.search);
  for (const form of document.querySelectorAll('form.search')) {
    if (asked.has('q')) form.q.value = asked.get('q');
    if (form.layer && asked.has('layer')) form.layer.value = asked.get('layer');
    form.oninput = () => search(form);
    form.onsubmit = () => false;
    search(form);
  }
  for (const more of document.querySelectorAll('.more')) more.onclick = () => {
    const table = document.getElementById(more.dataset.for);
    table.dataset.all = '1';
    show(table);
    tell(table, count(table));
  };
  document.addEventListener('keydown', arrows);
});
