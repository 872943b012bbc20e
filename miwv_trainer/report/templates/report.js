
"use strict";
// Texts of the dataset reach the page by textContent only.
let shared, rounds, texts, places; // see start()
const PAGE = 50;
const TEXT_OR_RANK = new Set(["rank", "index", "prompt", "response", "exemplar", "reason"]); // ascending at first
const element = (id) => document.getElementById(id);
const digits = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const whole = new Intl.NumberFormat("en");

const textOf = (kind, place) => (place === undefined || !texts ? "" : texts[kind][place]);
const exemplarPlace = (place) => places.get(shared.exemplar[place]);
const isSelected = (round, place) => round.reason[place] === round.selected;
const decimal = (value) => (value === null ? "–" : digits.format(value));
const counted = (value) => (value === null || value < 0 ? "–" : whole.format(value));

function reasonOf(round, place) {
  const phrase = round.phrases[round.reason[place]];
  const rank = round.rank[place];
  if (!rank) return phrase;
  if (isSelected(round, place)) {
    return `selected: rank ${whole.format(rank)} of ${whole.format(round.ranked)} by ${round.score}`;
  }
  return `${phrase} (rank ${whole.format(rank)}; ${whole.format(round.numberSelected)} selected)`;
}

// One entry a column: its key in the address, its head, its values, and how one is shown.
function columnsOf(round) {
  const prompt = (kind, of) => (place) => textOf(kind, of(place));
  const self = (place) => place;
  const columns = [
    { key: "rank", head: "rank", value: (p) => round.rank[p] || null, show: counted },
    { key: "index", head: "index", value: (p) => shared.index[p], show: String },
  ];
  if (round.miwv) columns.push({ key: "miwv", head: "MIWV", value: (p) => round.miwv[p], show: decimal });
  if (texts) {
    columns.push(
      { key: "prompt", head: "prompt", value: prompt("prompt", self), isText: true },
      { key: "response", head: "response", value: prompt("response", self), isText: true },
      { key: "exemplar", head: "exemplar", value: prompt("prompt", exemplarPlace), isText: true },
    );
  } else {
    columns.push({ key: "exemplar", head: "exemplar", value: (p) => shared.exemplar[p], show: counted });
  }
  columns.push({ key: "tokens", head: "response tokens", value: (p) => shared.responseTokens[p], show: counted });
  const numbers = [
    ["similarity", "similarity", shared.similarity], ["zero", "zero-shot", round.zeroShot],
    ["one", "one-shot", round.oneShot], ["score", round.score, round.ownScore],
  ];
  for (const [key, head, values] of numbers) {
    if (values) columns.push({ key, head, value: (p) => values[p], show: decimal });
  }
  if (round.age) columns.push({ key: "age", head: "age (rounds)", value: (p) => round.age[p], show: counted });
  columns.push({ key: "reason", head: "reason", value: (p) => round.phrases[round.reason[p]], isWords: true });
  return columns;
}

// What is shown stands in the address, so that a view can be shared: #q=…&sort=miwv&dir=desc&show=selected&round=1
const DEFAULTS = { q: "", sort: "rank", dir: "asc", show: "all", reason: "", round: "", page: "1", open: "" };
let state = readAddress();

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const read = Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given.get(name) ?? value]));
  if (given.has("sort") && !given.has("dir")) read.dir = TEXT_OR_RANK.has(read.sort) ? "asc" : "desc";
  if (given.has("open") && !given.has("page")) read.page = ""; // the one that the sample is on, see render()
  return read;
}

function change(changes) {
  state = { ...state, page: "1", open: "", ...changes };
  const kept = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  history.replaceState(null, "", kept.length ? "#" + new URLSearchParams(kept) : location.pathname + location.search);
  render();
}

let haystacks = null;
function matches(words) {
  if (!haystacks) {
    haystacks = shared.index.map((_, p) => (textOf("prompt", p) + "\n" + textOf("response", p)).toLowerCase());
  }
  const wanted = words.toLowerCase();
  return (place) => {
    if (String(shared.index[place]) === wanted || haystacks[place].includes(wanted)) return true;
    const exemplar = exemplarPlace(place);
    return exemplar !== undefined && haystacks[exemplar].includes(wanted);
  };
}

function compare(first, second) {
  return typeof first === "string" ? (first < second ? -1 : first > second ? 1 : 0) : first - second;
}

// Places of the samples to show, in order; samples without a value stand last in either direction.
function chosen(round, columns) {
  const words = state.q.trim();
  const fits = words ? matches(words) : () => true;
  const found = [];
  for (let place = 0; place < shared.index.length; place++) {
    if (state.show !== "all" && isSelected(round, place) !== (state.show === "selected")) continue;
    if (state.reason && round.phrases[round.reason[place]] !== state.reason) continue;
    if (fits(place)) found.push(place);
  }
  const column = columns.find((one) => one.key === state.sort) ?? columns[0];
  const sign = state.dir === "desc" ? -1 : 1;
  const values = new Map(found.map((place) => [place, column.value(place)]));
  const rankOf = (place) => round.rank[place] || Infinity;
  return found.sort((a, b) => {
    const [x, y] = [values.get(a), values.get(b)];
    if (x === null || y === null) return x === y ? a - b : x === null ? 1 : -1;
    return sign * compare(x, y) || compare(rankOf(a), rankOf(b)) || a - b;
  });
}

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function renderHead(columns) {
  const row = document.querySelector("#samples thead tr");
  const focused = document.activeElement?.dataset?.key;
  row.replaceChildren(...columns.map((column) => {
    const head = make("th", column.isText || column.isWords ? "words" : "");
    head.scope = "col";
    if (column.key === state.sort) head.setAttribute("aria-sort", state.dir === "desc" ? "descending" : "ascending");
    const button = make("button", "", column.head);
    button.type = "button";
    button.dataset.key = column.key;
    const first = TEXT_OR_RANK.has(column.key) ? "asc" : "desc";
    const other = state.dir === "asc" ? "desc" : "asc";
    button.onclick = () => change({ sort: column.key, dir: column.key === state.sort ? other : first });
    head.append(button);
    return head;
  }));
  if (focused) row.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function renderSample(round, columns, place) {
  const row = make("tr", "sample" + (isSelected(round, place) ? " chosen" : ""));
  const index = String(shared.index[place]);
  const isOpen = state.open === index;
  for (const column of columns) {
    const cell = make("td", column.isText ? "words" : column.isWords ? "reason" : "");
    if (column.isText) cell.append(make("div", "text", column.value(place).slice(0, 200)));
    else if (column.isWords) cell.textContent = reasonOf(round, place);
    else if (column.key === "index") {
      const button = make("button", "open", index);
      button.type = "button";
      button.dataset.index = index;
      button.setAttribute("aria-expanded", String(isOpen));
      button.setAttribute("aria-label", `Sample ${index} in full`);
      cell.append(button);
    } else cell.textContent = column.show(column.value(place));
    row.append(cell);
  }
  row.onclick = () => {
    if (String(getSelection())) return; // somebody is copying text
    change({ open: isOpen ? "" : index, page: state.page });
    document.querySelector(`[data-index="${index}"]`)?.focus({ preventScroll: true });
  };
  return isOpen ? [row, renderFull(columns.length, place)] : [row];
}

function renderFull(width, place) {
  const row = make("tr", "full");
  const cell = make("td");
  const pair = make("div", "pair");
  const exemplar = exemplarPlace(place);
  const named = `sample ${shared.exemplar[place]}`;
  const blocks = [["Prompt", textOf("prompt", place)], ["Response", textOf("response", place)]];
  if (shared.exemplar[place] < 0) blocks.push(["Exemplar", "none"]);
  else if (exemplar === undefined) blocks.push(["Exemplar", `${named} is not on this page`]);
  else {
    blocks.push([`Exemplar's prompt (${named})`, textOf("prompt", exemplar)]);
    blocks.push([`Exemplar's response (${named})`, textOf("response", exemplar)]);
  }
  for (const [head, text] of texts ? blocks : [["Exemplar", shared.exemplar[place] < 0 ? "none" : named]]) {
    const block = make("div");
    block.append(make("h4", "", head), make("pre", "", text));
    pair.append(block);
  }
  cell.colSpan = width;
  cell.append(pair);
  row.append(cell);
  return row;
}

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, label]) => {
    const option = make("option", "", label);
    option.value = key;
    return option;
  }));
  select.value = value;
}

function render() {
  const round = rounds.find((one) => String(one.number) === state.round) ?? rounds[rounds.length - 1];
  const columns = columnsOf(round);
  const counts = round.phrases.map(() => 0);
  for (const code of round.reason) counts[code]++;
  const found = [...new Set(round.phrases.filter((_, code) => counts[code]))];
  const total = (phrase) => round.phrases.reduce((sum, one, code) => sum + (one === phrase ? counts[code] : 0), 0);
  fillSelect(element("reason"), [["", "any"], ...found.map((one) => [one, `${one} (${whole.format(total(one))})`])], state.reason);
  fillSelect(element("round"), rounds.map((one) => [String(one.number), `round ${one.number}`]), String(round.number));
  element("round-label").hidden = rounds.length < 2;
  element("show").value = state.show;
  if (document.activeElement !== element("q")) element("q").value = state.q;

  const shown = chosen(round, columns);
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  const opened = shown.findIndex((place) => String(shared.index[place]) === state.open);
  const asked = state.page === "" ? Math.floor(opened / PAGE) + 1 : Number.parseInt(state.page, 10);
  const page = Math.min(pages, Math.max(1, asked || 1));
  state.page = String(page);
  renderHead(columns);
  const rows = shown.slice((page - 1) * PAGE, page * PAGE).flatMap((place) => renderSample(round, columns, place));
  document.querySelector("#samples tbody").replaceChildren(...rows);
  element("status").textContent =
    `${whole.format(shown.length)} of ${whole.format(shared.index.length)} samples. A click on a row shows it in full.`;
  element("where").textContent = `page ${whole.format(page)} of ${whole.format(pages)}`;
  element("previous").disabled = page <= 1;
  element("next").disabled = page >= pages;
  element("previous").onclick = () => change({ page: String(page - 1) });
  element("next").onclick = () => change({ page: String(page + 1) });
}

let waiting = 0;
element("q").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => change({ q: element("q").value }), 150);
});
element("show").onchange = (event) => change({ show: event.target.value });
element("reason").onchange = (event) => change({ reason: event.target.value });
element("round").onchange = (event) => change({ round: event.target.value, reason: "" });
element("controls").onsubmit = (event) => event.preventDefault();
addEventListener("hashchange", () => {
  state = readAddress();
  if (shared) renderAt();
});

function renderAt() {
  render();
  document.querySelector("#samples tr.full")?.scrollIntoView({ block: "center" });
}

// The data are JSON, compressed, in base64.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

async function start() {
  if (typeof DecompressionStream === "undefined") {
    element("status").textContent = "The table needs a browser from 2023 or later.";
    return;
  }
  ({ shared, rounds, texts } = await unpacked(element("data").textContent.trim()));
  places = new Map(shared.index.map((index, place) => [index, place]));
  renderAt();
}
start();
