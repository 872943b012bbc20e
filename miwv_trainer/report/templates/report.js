
"use strict";
// Texts of the dataset reach the page by textContent only: as HTML, a sample that holds a script would run it.

// Set by start(). A "place" is a row's position in these columns; `places` maps a sample's index to it. A score without
// exemplars has none for any sample.
let shared, rounds, texts, places, hasExemplars;
const PAGE = 50;
// Columns that a first click sorts in ascending order; all others show their highest numbers first.
const ASCENDING_FIRST = new Set(["rank", "index", "prompt", "response", "exemplar", "reason"]);
const element = (id) => document.getElementById(id);
const decimals = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const integers = new Intl.NumberFormat("en");

const getText = (kind, place) => (place === undefined || !texts ? "" : texts[kind][place]);
const findExemplar = (place) => places.get(shared.exemplar[place]);
const isSelected = (round, place) => round.reason[place] === round.selected;
const formatDecimal = (value) => (value === null ? "–" : decimals.format(value));
const formatCount = (value) => (value === null || value < 0 ? "–" : integers.format(value));

function describeReason(round, place) {
  const phrase = round.phrases[round.reason[place]];
  const rank = round.rank[place];
  if (!rank) return phrase;
  if (isSelected(round, place)) {
    return `selected: rank ${integers.format(rank)} of ${integers.format(round.ranked)} by ${round.score}`;
  }
  return `${phrase} (rank ${integers.format(rank)}; ${integers.format(round.numberSelected)} selected)`;
}

// The table's columns for a round: key in the address, head, value of a place, and how a value is shown.
function listColumns(round) {
  const columns = [
    { key: "rank", head: "rank", value: (p) => round.rank[p] || null, show: formatCount },
    { key: "index", head: "index", value: (p) => shared.index[p], show: String },
  ];
  if (round.miwv) columns.push({ key: "miwv", head: "MIWV", value: (p) => round.miwv[p], show: formatDecimal });
  if (texts) {
    columns.push(
      { key: "prompt", head: "prompt", value: (p) => getText("prompt", p), isText: true },
      { key: "response", head: "response", value: (p) => getText("response", p), isText: true },
    );
  }
  if (hasExemplars && texts) {
    columns.push({ key: "exemplar", head: "exemplar", value: (p) => getText("prompt", findExemplar(p)), isText: true });
  } else if (hasExemplars) {
    columns.push({ key: "exemplar", head: "exemplar", value: (p) => shared.exemplar[p], show: formatCount });
  }
  columns.push({ key: "tokens", head: "response tokens", value: (p) => shared.responseTokens[p], show: formatCount });
  const numbers = [
    ["similarity", "similarity", shared.similarity], ["zero", "zero-shot", round.zeroShot],
    ["one", "one-shot", round.oneShot], ["score", round.score, round.ownScore],
  ];
  for (const [key, head, values] of numbers) {
    if (values) columns.push({ key, head, value: (p) => values[p], show: formatDecimal });
  }
  if (round.age) columns.push({ key: "age", head: "age (rounds)", value: (p) => round.age[p], show: formatCount });
  columns.push({ key: "reason", head: "reason", value: (p) => round.phrases[round.reason[p]], isWords: true });
  return columns;
}

// The view is kept in the address, so that it can be shared: #q=…&sort=miwv&dir=desc&show=selected&round=1
const DEFAULTS = { q: "", sort: "rank", dir: "asc", show: "all", reason: "", round: "", page: "1", open: "" };
let state = readAddress();

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const read = Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given.get(name) ?? value]));
  if (given.has("sort") && !given.has("dir")) read.dir = ASCENDING_FIRST.has(read.sort) ? "asc" : "desc";
  if (given.has("open") && !given.has("page")) read.page = ""; // render() finds the page that the sample is on
  return read;
}

function changeView(changes) {
  state = { ...state, page: "1", open: "", ...changes };
  const kept = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  history.replaceState(null, "", kept.length ? "#" + new URLSearchParams(kept) : location.pathname + location.search);
  render();
}

// A test of a place for words in the sample's texts or its exemplar's. Lower case is made once: it takes a while.
let haystacks = null;
function makeSearch(words) {
  if (!haystacks) {
    haystacks = shared.index.map((_, p) => (getText("prompt", p) + "\n" + getText("response", p)).toLowerCase());
  }
  const wanted = words.toLowerCase();
  return (place) => {
    if (String(shared.index[place]) === wanted || haystacks[place].includes(wanted)) return true;
    const exemplar = findExemplar(place);
    return exemplar !== undefined && haystacks[exemplar].includes(wanted);
  };
}

function compare(first, second) {
  return typeof first === "string" ? (first < second ? -1 : first > second ? 1 : 0) : first - second;
}

// Places of the samples to show, in order. Samples without a value come last in either direction.
function choosePlaces(round, columns) {
  const words = state.q.trim();
  const fits = words ? makeSearch(words) : () => true;
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

function makeElement(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function renderHead(columns) {
  const row = document.querySelector("#samples thead tr");
  const focused = document.activeElement?.dataset?.key;
  row.replaceChildren(...columns.map((column) => {
    const head = makeElement("th", column.isText || column.isWords ? "words" : "");
    head.scope = "col";
    if (column.key === state.sort) head.setAttribute("aria-sort", state.dir === "desc" ? "descending" : "ascending");
    const button = makeElement("button");
    // A column of the dataset may have a long name, which breaks behind its underscores.
    button.append(...column.head.split(/(?<=_)/).flatMap((part, i) => (i ? [makeElement("wbr"), part] : [part])));
    button.type = "button";
    button.dataset.key = column.key;
    const first = ASCENDING_FIRST.has(column.key) ? "asc" : "desc";
    const other = state.dir === "asc" ? "desc" : "asc";
    button.onclick = () => changeView({ sort: column.key, dir: column.key === state.sort ? other : first });
    head.append(button);
    return head;
  }));
  if (focused) row.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function renderSample(round, columns, place) {
  const row = makeElement("tr", "sample" + (isSelected(round, place) ? " chosen" : ""));
  const index = String(shared.index[place]);
  const isOpen = state.open === index;
  for (const column of columns) {
    const cell = makeElement("td", column.isText ? "words" : column.isWords ? "reason" : "");
    if (column.isText) cell.append(makeElement("div", "text", column.value(place).slice(0, 200)));
    else if (column.isWords) cell.textContent = describeReason(round, place);
    else if (column.key === "index") {
      const button = makeElement("button", "open", index);
      button.type = "button";
      button.dataset.index = index;
      button.setAttribute("aria-expanded", String(isOpen));
      button.setAttribute("aria-label", `Sample ${index} in full`);
      cell.append(button);
    } else cell.textContent = column.show(column.value(place));
    row.append(cell);
  }
  row.onclick = () => {
    if (String(getSelection())) return; // the click ends a selection of text to copy
    changeView({ open: isOpen ? "" : index, page: state.page });
    document.querySelector(`[data-index="${index}"]`)?.focus({ preventScroll: true });
  };
  return isOpen ? [row, renderFull(columns.length, place)] : [row];
}

function renderFull(width, place) {
  const row = makeElement("tr", "full");
  const cell = makeElement("td");
  const pair = makeElement("div", "pair");
  const exemplar = findExemplar(place);
  const named = `sample ${shared.exemplar[place]}`;
  const blocks = [["Prompt", getText("prompt", place)], ["Response", getText("response", place)]];
  if (shared.exemplar[place] < 0) {
    if (hasExemplars) blocks.push(["Exemplar", "none"]);
  } else if (exemplar === undefined) blocks.push(["Exemplar", `${named} is not in this table`]);
  else {
    blocks.push([`Exemplar's prompt (${named})`, getText("prompt", exemplar)]);
    blocks.push([`Exemplar's response (${named})`, getText("response", exemplar)]);
  }
  const shown = texts ? blocks : [["Exemplar", shared.exemplar[place] < 0 ? "none" : named]];
  const further = shared.furtherExemplars ? shared.furtherExemplars[place] : [];
  if (further.length) shown.push(["Further exemplars, nearest first", further.map((each) => `sample ${each}`).join(", ")]);
  for (const [head, text] of shown) {
    const block = makeElement("div");
    block.append(makeElement("h4", "", head), makeElement("pre", "", text));
    pair.append(block);
  }
  cell.colSpan = width;
  cell.append(pair);
  row.append(cell);
  return row;
}

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, label]) => {
    const option = makeElement("option", "", label);
    option.value = key;
    return option;
  }));
  select.value = value;
}

function render() {
  const round = rounds.find((one) => String(one.number) === state.round) ?? rounds[rounds.length - 1];
  const columns = listColumns(round);
  const counts = round.phrases.map(() => 0);
  for (const code of round.reason) counts[code]++;
  const found = [...new Set(round.phrases.filter((_, code) => counts[code]))];
  const total = (phrase) => round.phrases.reduce((sum, one, code) => sum + (one === phrase ? counts[code] : 0), 0);
  fillSelect(element("reason"), [["", "any"], ...found.map((one) => [one, `${one} (${integers.format(total(one))})`])], state.reason);
  fillSelect(element("round"), rounds.map((one) => [String(one.number), `round ${one.number}`]), String(round.number));
  element("round-label").hidden = rounds.length < 2;
  element("show").value = state.show;
  if (document.activeElement !== element("q")) element("q").value = state.q;

  const shown = choosePlaces(round, columns);
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  const opened = shown.findIndex((place) => String(shared.index[place]) === state.open);
  const asked = state.page === "" ? Math.floor(opened / PAGE) + 1 : Number.parseInt(state.page, 10);
  const page = Math.min(pages, Math.max(1, asked || 1));
  state.page = String(page);
  renderHead(columns);
  const rows = shown.slice((page - 1) * PAGE, page * PAGE).flatMap((place) => renderSample(round, columns, place));
  document.querySelector("#samples tbody").replaceChildren(...rows);
  element("status").textContent =
    `${integers.format(shown.length)} of ${integers.format(shared.index.length)} samples. Click a column head to sort, a row to open the sample.`;
  element("where").textContent = `page ${integers.format(page)} of ${integers.format(pages)}`;
  element("previous").disabled = page <= 1;
  element("next").disabled = page >= pages;
  element("previous").onclick = () => changeView({ page: String(page - 1) });
  element("next").onclick = () => changeView({ page: String(page + 1) });
}

// Searching on every keystroke would be slow in a large pool: wait for a pause.
let searchTimer = 0;
element("q").addEventListener("input", () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(() => changeView({ q: element("q").value }), 150);
});
element("show").onchange = (event) => changeView({ show: event.target.value });
element("reason").onchange = (event) => changeView({ reason: event.target.value });
element("round").onchange = (event) => changeView({ round: event.target.value, reason: "" });
element("controls").onsubmit = (event) => event.preventDefault();
addEventListener("hashchange", () => {
  state = readAddress();
  if (shared) renderOpened();
});

function renderOpened() {
  render();
  document.querySelector("#samples tr.full")?.scrollIntoView({ block: "center" });
}

// The data are JSON, compressed, in base64; see embedded_json.py.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

async function start() {
  if (typeof DecompressionStream === "undefined") {
    element("status").textContent = "The table needs a browser from 2023 or later.";
    return;
  }
  ({ shared, rounds, texts } = await unpack(element("data").textContent.trim()));
  places = new Map(shared.index.map((index, place) => [index, place]));
  hasExemplars = shared.exemplar.some((index) => index >= 0);
  const searched = [...(texts ? ["prompt", "response"] : []), ...(texts && hasExemplars ? ["exemplar"] : [])];
  element("q").placeholder = [...searched, "index"].join(", ");
  renderOpened();
}
start();
