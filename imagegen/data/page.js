"use strict";
// Nodes write most of what an answer holds, and anything may pose as a node: it all becomes text or a title, never markup.

const STATES = ["failed", "lost", "degraded", "waiting", "working", "", "ready"]; // the order of the rows
const GROUPED = ["failed", "lost", "degraded"]; // equal ones are one row: what they need is done once for all
const OVER = { working: "worked", waiting: "waited", failed: "failed", ready: "ready" }; // of an entry that is over
const DISMISSED = "imagegen.dismissed"; // in localStorage: the refusals that need no look any more
const TICKS = [5, 10, 15, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const POLL = 1000, OVERDUE = 5000, SPEAK = 10000, ALL = 300000; // milliseconds

const $ = (id) => document.getElementById(id);
const items = new Map(); // name -> {data, row, cells, state, rank, place, key, text, seen}
const groups = new Map(); // key -> {row, cells, key, state, members, open}
let sorted = [];         // the same, in the order of the rows
let axis = { start: 0, end: 1, own: false };
let cluster = "", refusals = [], reports = "", reported = 0, wanted = [];
let dismissed = new Set(); // refusals as JSON; one that came again is another
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

function age(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  return `${Math.max(0, Math.floor(seconds))} s`;
}

// As imagegen/server/ledger.py, show_state: who said nothing for so long is lost, unless it has failed anyway.
function shownState(data) {
  if (data.state !== "failed" && data.due !== null && serverNow() > data.due) return "lost";
  return data.state === "ready" && data.detail.startsWith("degraded: ") ? "degraded" : data.state;
}

// Until when its clock ran: it is ready, has failed, or was last heard then.
const endOf = ({ data, state }) => data.ended ?? (state === "lost" ? data.heard : serverNow());

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
  const { row, cells } = item, state = shownState(data), rank = STATES.indexOf(state);
  // The same reason but for the node's own name and address is the same.
  const own = [data.name, data.address].filter(Boolean).map((word) => word.replaceAll(".", "\\.")).join("|");
  const reason = data.detail.replace(new RegExp(`(?<![\\w-])(${own})(?![\\w-])`, "g"), "NODE");
  const key = GROUPED.includes(state) ? JSON.stringify([state, data.role, data.step, state === "lost" ? "" : reason]) : "";
  const moved = rank !== item.rank || key !== item.key;
  Object.assign(item, { data, state, rank, key, reason, text: [data.name, data.role, label(state), data.step, data.address, data.detail].join(" ").toLowerCase() });
  row.dataset.state = state;
  put(cells.name.lastChild, data.address);
  put(cells.role, data.role);
  put(cells.state, label(state));
  put(cells.step, data.step);
  put(cells.detail.firstChild, state === "degraded" ? data.detail.slice(10) : data.detail);
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
  put(cells.running, data.began === null ? "" : duration(endOf(item) - data.began));
  put(cells.heard, data.heard === null ? "" : age(serverNow() - data.heard));
  put(cells.seed, seedText(data.seed));
  cells.seed.title = data.claimed.map(({ address, at }) => `claimed by ${address}, ${time(at, true)}`).join("\n");
}

// ---- groups: equal failures are one row, and a button shows the nodes

function placeGroups() {
  const found = new Map();
  for (const item of sorted) if (item.key) found.set(item.key, [...found.get(item.key) ?? [], item]);
  for (const [key, group] of groups) {
    if ((found.get(key) ?? []).length > 1) continue;
    group.row.remove();
    groups.delete(key);
  }
  for (const [key, members] of found) if (members.length > 1) {
    if (!groups.has(key)) {
      const row = $("group").content.firstElementChild.cloneNode(true);
      const cells = Object.fromEntries([...row.cells].map((cell) => [cell.className, cell]));
      groups.set(key, { key, row, cells, open: false });
      row.group = groups.get(key);
    }
    const group = Object.assign(groups.get(key), { members, state: members[0].state });
    group.row.dataset.state = group.row.dataset.group = group.state;
    put(group.cells.role, members[0].data.role);
    put(group.cells.state, label(group.state));
    put(group.cells.step, members[0].data.step);
    put(group.cells.detail.firstChild, group.state === "lost" ? "" : members[0].reason.replace(/^degraded: /, ""));
    if (members[0].row.previousElementSibling !== group.row) members[0].row.before(group.row);
  }
}

function showGroup({ row, cells, members, open }) {
  const shown = members.filter((item) => item.matches);
  row.hidden = shown.length < 2;
  put(cells.name.firstElementChild, `${shown.length} nodes`);
  cells.name.firstElementChild.setAttribute("aria-expanded", open);
  put(cells.detail.lastChild, shown.map((item) => item.data.name).join(", "));
}

// Rows that stay in order among themselves are not touched: from the last to the first, each moved row goes before its successor.
function placeRows(moved, grown) {
  if (grown) {
    const compare = new Intl.Collator("en", { numeric: true }).compare; // node2 before node10
    sorted = [...items.values()].sort((a, b) => compare(a.data.name, b.data.name));
    sorted.forEach((item, index) => { item.place = index; });
  }
  const first = new Map(); // key of a group -> the place of its first node
  for (const item of sorted) if (item.key) first.set(item.key, Math.min(item.place, first.get(item.key) ?? Infinity));
  const head = (item) => first.get(item.key) ?? item.place;
  sorted.sort((a, b) => a.rank - b.rank || head(a) - head(b) || a.place - b.place);
  const focused = document.activeElement;
  let next = null;
  for (const item of sorted.toReversed()) {
    if (moved.has(item) || !item.row.isConnected) $("rows").insertBefore(item.row, next);
    next = item.row;
  }
  placeGroups();
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

function drawEntry(item, index) {
  const { data, bar, steps } = item, { at, state, step } = data.timeline[index], zero = axis.own ? data.began ?? at : 0;
  const follower = data.timeline[index + 1], last = !follower;
  const until = Math.max(at, follower?.at ?? endOf(item)), seconds = until - at;
  const done = state === "working" && (follower ? follower.step !== step : data.state === "ready");
  const word = done ? "done" : last ? (item.state === "lost" ? `${label(state)} when last heard` : label(state)) : OVER[state] ?? label(state);
  const text = `${step || label(state)}: ${seconds.toFixed(seconds < 10 ? 1 : 0)} s, ${word}`;
  const percent = (value) => `${(100 * value / (axis.end - axis.start)).toFixed(3)}%`;
  const segment = bar.children[index], line = steps.children[index];
  segment.dataset.state = state;
  segment.title = text;
  segment.style.left = percent(at - zero - axis.start);
  segment.style.width = percent(seconds);
  if (line) { line.dataset.state = done ? "ready" : last && item.state === "lost" ? "lost" : state; put(line, text); }
}

// The axis ends at whole ticks, so that it changes every few minutes and not every second.
function setAxis() {
  const own = $("span").value === "own", recent = Number($("span").value), now = serverNow();
  let first = Infinity, last = -Infinity;
  for (const item of sorted) {
    const { data } = item;
    if (data.began === null) continue;
    const until = endOf(item);
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
  item.matches = wanted.every((word) => word.startsWith("is:") ? word === `is:${label(item.state)}` : item.text.includes(word));
}

// A node of a closed group is there, and not shown; one that alone matches the filter is.
function showRows() {
  for (const group of groups.values()) showGroup(group);
  for (const { row, key, matches } of sorted) {
    const group = groups.get(key), hidden = !matches || Boolean(group && !group.open && !group.row.hidden);
    if (row.hidden !== hidden) row.hidden = hidden;
    row.classList.toggle("member", Boolean(group && !group.row.hidden));
  }
}

function applyFilter() {
  wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const item of sorted) filterRow(item);
  showHead();
  history.replaceState(null, "", `#${new URLSearchParams({ filter: $("filter").value })}`); // a view outlives a reload, and can be sent on
}

function showHead() {
  showRows();
  const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
  let shown = 0;
  for (const { state, matches } of sorted) { counts[state]++; shown += matches; }
  for (const button of $("counts").children) {
    const state = button.dataset.state;
    put(button.firstChild, String(counts[state]));
    button.classList.toggle("zero", counts[state] === 0);
    button.setAttribute("aria-pressed", $("filter").value === `is:${label(state)}`);
  }
  for (const part of $("meter").children) part.style.flexGrow = counts[part.dataset.state];
  put($("cluster"), cluster);
  put($("total"), shown === sorted.length ? `${shown} nodes` : `${shown} of ${sorted.length} nodes`);
  put($("none"), sorted.length ? "No node matches the filter." : "The cluster has no nodes.");
  $("none").hidden = shown > 0;
  const said = STATES.filter((state) => counts[state]).map((state) => `${counts[state]} ${label(state)}`);
  if (reported) said.push(`${reported} ${reported === 1 ? "report" : "reports"}`);
  $("spoken").dataset.next = `${$("total").textContent}: ${said.join(", ")}`;
  document.title = `${lost ? "no contact, " : ""}${["failed", "lost", "degraded"].map((state) => counts[state] ? `${counts[state]} ${state}, ` : "").join("")}${counts.ready}/${sorted.length} ready - ${cluster}`;
}

function showReports(list) {
  refusals = list;
  const fresh = list.filter((report) => !dismissed.has(JSON.stringify(report)));
  const text = JSON.stringify([fresh, list.length]);
  if (text === reports) return;
  reports = text;
  reported = fresh.length;
  $("reports").hidden = list.length === 0;
  $("reports").classList.toggle("quiet", reported === 0);
  put($("reports-title"), reported ? `Refused requests, ${reported}: most important first` : "No new refused requests");
  $("dismiss").hidden = reported === 0;
  $("recall").hidden = reported === list.length;
  put($("recall"), `Show ${list.length - reported} dismissed`);
  $("reports").lastElementChild.replaceChildren(...fresh.map((report) => {
    const line = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = "Dismiss";
    button.report = report;
    for (const part of [time(report.at, true), report.node || "unknown node", report.address, report.text]) {
      const field = document.createElement("span");
      field.textContent = part;
      line.append(field, " ");
    }
    line.append(button);
    return line;
  }));
}

// Only this browser forgets them: the ledger keeps the evidence. What is not listed any more need not be remembered.
function dismiss(list) {
  dismissed = new Set(list.map((report) => JSON.stringify(report)));
  try { localStorage.setItem(DISMISSED, JSON.stringify([...dismissed])); } catch (error) { console.warn(error); }
  showReports(refusals);
  showHead();
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
  // Who says the same again has no new revision, and is heard all the same.
  for (const [name, heard] of Object.entries(news.heard)) if (items.has(name)) Object.assign(items.get(name).data, heard);
  for (const item of items.values()) if (shownState(item.data) !== item.state && fillRow(item, item.data)) { moved.add(item); changed = true; }
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
    problem = `The server returned an error (${response.status})`;
    if (!response.ok) throw new Error(response.statusText);
    problem = "The server's answer cannot be read (if this page is older than the server, reload it)";
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
  if (performance.now() - asking > OVERDUE && !lost) lost = "The server is not answering";
  // The alert is written once, for screen readers read it again at each change; the age beside the counts goes on.
  const since = answer ? `since ${time(answer.now, true)}. This page shows the state at that time` : "yet";
  put($("lost"), lost && `${lost}: no news ${since}. Trying again every second.`);
  document.body.classList.toggle("lost", Boolean(lost));
  if (answer) put($("fresh"), lost ? `${duration((performance.now() - answer.at) / 1000)} old` : `as of ${time(answer.now, true)}`);
  if (lost) showHead();
  else if (answer) {
    setAxis();
    for (const item of sorted) {
      if (!item.seen) continue;
      tickRow(item);
      if (!item.data.ended && item.state !== "lost" && item.data.timeline.length) drawEntry(item, item.data.timeline.length - 1);
    }
  }
  // A busy cluster changes each second; nobody can listen to that.
  const next = $("spoken").dataset.next ?? "";
  if (next !== spoken && performance.now() - spokenAt > SPEAK) { put($("spoken"), spoken = next); spokenAt = performance.now(); }
}

try { dismissed = new Set(JSON.parse(localStorage.getItem(DISMISSED) ?? "[]")); } catch (error) { console.warn(error); }
$("reports").addEventListener("click", ({ target }) => {
  const gone = refusals.filter((report) => dismissed.has(JSON.stringify(report)));
  if (target.id === "dismiss") dismiss(refusals);
  else if (target.id === "recall") dismiss([]);
  else if (target.report) dismiss([...gone, target.report]);
});
$("filter").value = new URLSearchParams(location.hash.slice(1)).get("filter") ?? "";
if ($("filter").value) applyFilter();
$("filter").addEventListener("input", applyFilter);
$("span").addEventListener("change", setAxis);
$("counts").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  $("filter").value = button.getAttribute("aria-pressed") === "true" ? "" : `is:${label(button.dataset.state)}`;
  applyFilter();
});
$("rows").addEventListener("click", ({ target }) => {
  const { item, group } = target.closest("tr");
  if (!target.closest("button, .bar")) return;
  if (group) {
    group.open = !group.open;
    showHead();
    return;
  }
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
