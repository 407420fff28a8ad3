"use strict";
// Nodes write most of what an answer holds, and anything may pose as a node: it all becomes text or a title, never markup.

const STATES = ["failed", "waiting", "working", "", "ready"]; // the order of the rows
const TICKS = [5, 10, 15, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const POLL = 1000, OVERDUE = 5000, SPEAK = 10000, ALL = 300000; // milliseconds

const $ = (id) => document.getElementById(id);
const items = new Map(); // name -> {data, row, cells, rank, place, text, seen}
let sorted = [];         // the same, in the order of the rows
let axis = { start: 0, end: 1, own: false };
let cluster = "", reports = "[]", reported = 0, wanted = [];
let revision = 0, full = true, fullAt = 0; // full: the next question is for all nodes
let answer = null;       // {now, at}: the server's clock at a time of ours; browsers' clocks are wrong
let asking = performance.now(), lost = "", polling = false, timer = 0; // asking: since when no answer is owed
let spoken = "", spokenAt = -SPEAK;

const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const label = (state) => state || "silent";
const two = (number) => String(number).padStart(2, "0");
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

// Without contact time stands still: seconds that nobody measured would look like news.
function serverNow() {
  if (!answer) return Date.now() / 1000;
  return answer.now + (lost ? 0 : (performance.now() - answer.at) / 1000);
}

function time(epoch, seconds = false) {
  const date = new Date(epoch * 1000), today = day.format(serverNow() * 1000);
  const text = `${two(date.getHours())}:${two(date.getMinutes())}${seconds ? `:${two(date.getSeconds())}` : ""}`;
  return day.format(date) === today ? text : `${day.format(date)} ${text}`;
}

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds)), minutes = Math.floor(whole / 60);
  const head = minutes < 60 ? minutes : `${Math.floor(minutes / 60)}:${two(minutes % 60)}`;
  return `${head}:${two(whole % 60)}`;
}

function seedText(seed) {
  if (!seed) return "";
  const used = `${seed.used} of ${seed.claims} used`;
  if (seed.used >= seed.claims) return used;
  const rest = seed.closes === null ? "open" : seed.closes > serverNow() ? `open until ${time(seed.closes)}` : "closed";
  return seed.used ? `${used}, ${rest}` : rest;
}

// ---- rows

function addRow(name) {
  const row = $("row").content.firstElementChild.cloneNode(true);
  const cells = Object.fromEntries([...row.cells].map((cell) => [cell.className, cell]));
  cells.name.firstChild.textContent = row.dataset.node = name;
  const item = { row, cells, rank: -1, place: 0, seen: false, bar: cells.timeline.firstChild, steps: cells.detail.lastChild };
  row.item = item;
  items.set(name, item);
  onScreen.observe(row);
  return item;
}

// Returns whether the row now belongs somewhere else.
function fillRow(item, data) {
  const { row, cells } = item, rank = STATES.indexOf(data.state), moved = rank !== item.rank;
  Object.assign(item, { data, rank, text: [data.name, data.role, label(data.state), data.step, data.address].join(" ").toLowerCase() });
  if (moved) row.dataset.state = data.state;
  put(cells.name.lastChild, data.address);
  put(cells.role, data.role);
  put(cells.state, label(data.state));
  put(cells.step, data.step);
  put(cells.detail.firstChild, data.detail);
  put(cells.image, data.image);
  tickRow(item);
  item.bar.setAttribute("aria-label", `${data.timeline.length} entries; the button with the node's name lists them`);
  if (item.seen) drawTimeline(item);
  filterRow(item);
  return moved;
}

// What changes by time alone.
function tickRow(item) {
  const { data, cells } = item;
  put(cells.running, data.began === null ? "" : duration((data.ended ?? serverNow()) - data.began));
  put(cells.seed, seedText(data.seed));
  cells.seed.title = data.claimed.map(({ address, at }) => `claimed by ${address}, ${time(at, true)}`).join("\n");
}

// Rows that stay in order among themselves are not touched: from the last to the first, each moved row goes before its successor.
function placeRows(moved, grown) {
  if (grown) {
    const compare = new Intl.Collator("en", { numeric: true }).compare; // node2 before node10
    sorted = [...items.values()].sort((a, b) => compare(a.data.name, b.data.name));
    sorted.forEach((item, index) => { item.place = index; });
  }
  sorted.sort((a, b) => a.rank - b.rank || a.place - b.place);
  const focused = document.activeElement;
  let next = null;
  for (const item of sorted.toReversed()) {
    if (moved.has(item)) $("rows").insertBefore(item.row, next);
    next = item.row;
  }
  if (focused !== document.activeElement) focused.focus({ preventScroll: true }); // a moved row loses the focus
}

// ---- timelines: drawn only near the screen, since 1,000 nodes have 45,000 entries

const onScreen = new IntersectionObserver((entries) => {
  for (const { target: { item }, isIntersecting } of entries) {
    item.seen = isIntersecting;
    if (!item.data) continue;
    if (item.seen) { tickRow(item); drawTimeline(item); } else item.bar.replaceChildren();
  }
}, { rootMargin: "300px" });

function fit(parent, count, tag) {
  while (parent.childElementCount < count) parent.append(document.createElement(tag));
  while (parent.childElementCount > count) parent.lastChild.remove();
}

function drawTimeline(item) {
  const count = item.data.timeline.length;
  fit(item.bar, count, "i");
  fit(item.steps, item.steps.hidden ? 0 : count, "li");
  for (let index = 0; index < count; index++) drawEntry(item, index);
}

function drawEntry({ data, bar, steps }, index) {
  const { at, state, step } = data.timeline[index], zero = axis.own ? data.began ?? at : 0;
  const until = Math.max(at, data.timeline[index + 1]?.at ?? data.ended ?? serverNow()), seconds = until - at;
  const text = `${step || label(state)}: ${seconds.toFixed(seconds < 10 ? 1 : 0)} s, ${label(state)}`;
  const percent = (value) => `${(100 * value / (axis.end - axis.start)).toFixed(3)}%`;
  const segment = bar.children[index], line = steps.children[index];
  segment.dataset.state = state;
  segment.title = text;
  segment.style.left = percent(at - zero - axis.start);
  segment.style.width = percent(seconds);
  if (line) { line.dataset.state = state; put(line, text); }
}

// The axis ends at whole ticks, so that it changes every few minutes and not every second.
function setAxis() {
  const own = $("span").value === "own", recent = Number($("span").value), now = serverNow();
  let first = Infinity, last = -Infinity;
  for (const { data } of sorted) {
    if (data.began === null) continue;
    const until = data.ended ?? now;
    first = Math.min(first, own ? 0 : data.began);
    last = Math.max(last, own ? until - data.began : until);
  }
  if (first > last) [first, last] = own ? [0, 60] : [now, now + 60];
  if (recent) first = Math.max(first, last - recent);
  const tick = TICKS.find((size) => (last - first) / size <= 5) ?? 86400 * Math.ceil((last - first) / 432000);
  const start = Math.floor(first / tick) * tick, end = Math.max(Math.ceil(last / tick) * tick, start + tick);
  if (axis.start === start && axis.end === end && axis.own === own) return;
  axis = { start, end, own };
  const count = Math.round((end - start) / tick);
  document.body.style.setProperty("--ticks", count);
  fit($("axis"), count, "span");
  [...$("axis").children].forEach((mark, index) => {
    const at = start + index * tick;
    mark.textContent = own ? duration(at) : tick < 86400 ? time(at, tick < 60).split(" ").pop() : day.format(at * 1000);
  });
  for (const item of sorted) if (item.seen) drawTimeline(item);
}

// ---- the head

function filterRow(item) {
  const hidden = !wanted.every((word) => item.text.includes(word));
  if (item.row.hidden !== hidden) item.row.hidden = hidden;
}

function applyFilter() {
  wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const item of sorted) filterRow(item);
  showHead();
  history.replaceState(null, "", `#${new URLSearchParams({ filter: $("filter").value })}`); // a view outlives a reload, and can be sent on
}

function showHead() {
  const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
  let shown = 0;
  for (const { data, row } of sorted) { counts[data.state]++; shown += !row.hidden; }
  for (const button of $("counts").children) {
    const state = button.dataset.state;
    put(button.firstChild, String(counts[state]));
    button.classList.toggle("zero", counts[state] === 0);
    button.setAttribute("aria-pressed", $("filter").value === label(state));
  }
  for (const part of $("meter").children) part.style.flexGrow = counts[part.dataset.state];
  put($("cluster"), cluster);
  put($("total"), shown === sorted.length ? `${shown} nodes` : `${shown} of ${sorted.length} nodes`);
  put($("none"), sorted.length ? "No node matches the filter." : "The cluster has no nodes.");
  $("none").hidden = shown > 0;
  const said = STATES.filter((state) => counts[state]).map((state) => `${counts[state]} ${label(state)}`);
  if (reported) said.push(`${reported} ${reported === 1 ? "report" : "reports"}`);
  $("spoken").dataset.next = `${$("total").textContent}: ${said.join(", ")}`;
  document.title = `${lost ? "no contact, " : ""}${counts.failed ? `${counts.failed} failed, ` : ""}${counts.ready}/${sorted.length} ready - ${cluster}`;
}

function showReports(list) {
  const text = JSON.stringify(list);
  if (text === reports) return;
  reports = text;
  reported = list.length;
  $("reports").hidden = list.length === 0;
  put($("reports-title"), `Refused requests, ${list.length}: the weightiest first`);
  $("reports").lastElementChild.replaceChildren(...list.map((report) => {
    const line = document.createElement("li");
    for (const part of [time(report.at, true), report.node || "unknown node", report.address, report.text]) {
      const field = document.createElement("span");
      field.textContent = part;
      line.append(field, " ");
    }
    return line;
  }));
}

// ---- the server

function showAnswer(news, all) {
  answer = { now: news.now, at: performance.now() };
  cluster = news.cluster;
  const moved = new Set();
  let changed = news.nodes.length > 0;
  if (all) {
    const names = new Set(news.nodes.map((data) => data.name));
    for (const [name, item] of items) if (!names.has(name)) { onScreen.unobserve(item.row); item.row.remove(); items.delete(name); changed = true; }
  }
  const before = items.size;
  for (const data of news.nodes) {
    if (!STATES.includes(data.state)) data.state = "";
    const item = items.get(data.name) ?? addRow(data.name);
    if (fillRow(item, data)) moved.add(item);
  }
  if (changed) placeRows(moved, items.size !== before || sorted.length !== items.size);
  showReports(news.reports);
  showHead();
  setAxis();
  revision = news.revision;
  document.body.dataset.revision = revision;
}

async function poll() {
  if (polling || document.hidden) return;
  polling = true;
  clearTimeout(timer);
  // Now and then all are asked for: an image, an address or a node's removal raises no revision.
  let pause = POLL, asked = full || performance.now() - fullAt > ALL ? 0 : revision, problem = "The server cannot be reached";
  try {
    const response = await fetch(`nodes.json?since=${asked}`, { cache: "no-store", signal: AbortSignal.timeout(60000) });
    problem = `The server answers with an error (${response.status})`;
    if (!response.ok) throw new Error(response.statusText);
    problem = "The server's answer cannot be read (is this page older than the server? reload it)";
    const news = await response.json();
    if (news.version !== 1) throw new Error(`version ${news.version}`);
    full = news.revision < asked; // the server's state was deleted
    if (full) pause = 0;
    lost = "";
    asking = performance.now();
    if (asked === 0) fullAt = performance.now();
    if (!full) showAnswer(news, asked === 0);
  } catch (error) {
    console.warn(error);
    lost = problem;
    full = true; // it may come back with another state
  }
  polling = false;
  if (!document.hidden) timer = setTimeout(poll, pause);
  tick();
}

function tick() {
  if (document.hidden) return;
  if (performance.now() - asking > OVERDUE && !lost) lost = "The server does not answer";
  // The alert is written once, for screen readers read it again at each change; the age beside the counts goes on.
  const since = answer ? `since ${time(answer.now, true)}. What this page shows is of then` : "yet";
  put($("lost"), lost && `${lost}: no news ${since}. Trying again every second.`);
  document.body.classList.toggle("lost", Boolean(lost));
  if (answer) put($("fresh"), lost ? `${duration((performance.now() - answer.at) / 1000)} old` : `as of ${time(answer.now, true)}`);
  if (lost) showHead();
  else if (answer) {
    setAxis();
    for (const item of sorted) {
      if (!item.seen) continue;
      tickRow(item);
      if (!item.data.ended && item.data.timeline.length) drawEntry(item, item.data.timeline.length - 1);
    }
  }
  // A busy cluster changes each second; nobody can listen to that.
  const next = $("spoken").dataset.next ?? "";
  if (next !== spoken && performance.now() - spokenAt > SPEAK) { put($("spoken"), spoken = next); spokenAt = performance.now(); }
}

$("filter").value = new URLSearchParams(location.hash.slice(1)).get("filter") ?? "";
if ($("filter").value) applyFilter();
$("filter").addEventListener("input", applyFilter);
$("span").addEventListener("change", setAxis);
$("counts").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  $("filter").value = button.getAttribute("aria-pressed") === "true" ? "" : label(button.dataset.state);
  applyFilter();
});
$("rows").addEventListener("click", ({ target }) => {
  const { item } = target.closest("tr");
  if (!target.closest("button, .bar")) return;
  item.steps.hidden = !item.row.classList.toggle("open");
  item.cells.name.firstChild.setAttribute("aria-expanded", !item.steps.hidden);
  drawTimeline(item);
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== $("filter")) { event.preventDefault(); $("filter").focus(); }
  if (event.key === "Escape" && $("filter").value) { $("filter").value = ""; applyFilter(); }
});
document.addEventListener("visibilitychange", () => { asking = performance.now(); poll(); });
// The names of the columns stick below the head, whose height depends on its wrapping.
new ResizeObserver(([{ target }]) => document.documentElement.style.setProperty("--head", `${target.offsetHeight}px`)).observe(document.querySelector("header"));
setInterval(tick, 1000);
poll();
