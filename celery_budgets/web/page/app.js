// The page of the lanes. Data becomes text and numbers of attributes, never markup.

const facts = JSON.parse(document.querySelector("meta[name=lanes-facts]").content);
const byId = (id) => document.getElementById(id);
const news = { lanes: null, kills: null, limits: null, history: null, takenAt: 0, stale: null, problem: "" };
const open = new Set();

// --- Building and updating -------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === "") continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const keyOf = (node) => (node.nodeType === 1 ? node.getAttribute("data-key") : null);

// Turns `old` into `fresh` with as few changes as possible, so that focus and selection stay.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || keyOf(old) !== keyOf(fresh)) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType === 3) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morphChildren(old, [...fresh.childNodes]);
}

function morphChildren(parent, fresh) {
  const keyed = new Map();
  for (const child of parent.childNodes) if (keyOf(child) !== null) keyed.set(keyOf(child), child);
  let place = parent.firstChild;
  for (const child of fresh) {
    const key = keyOf(child);
    const same = key === null ? null : keyed.get(key);
    if (same && same !== place) parent.insertBefore(same, place), (place = same);
    if (!place) {
      parent.append(child);
      continue;
    }
    if (key !== null && !same) {
      parent.insertBefore(child, place);
      continue;
    }
    const next = place.nextSibling;
    morph(place, child);
    place = next;
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}
const show = (id, ...children) => morphChildren(byId(id), children.flat(Infinity).filter((c) => c !== null).map(
  (c) => (c instanceof Node ? c : document.createTextNode(String(c)))));

// --- Words and numbers ------------------------------------------------------------------------

const round = (value, digits) => Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 3 });

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 1e-3) return `${round(seconds * 1e6, 2)} µs`;
  if (seconds < 1) return `${round(seconds * 1e3, 3)} ms`;
  if (seconds < 120) return `${round(seconds, seconds < 10 ? 2 : 3)} s`;
  if (seconds < 7200) return `${round(seconds / 60, seconds < 600 ? 2 : 3)} min`;
  return `${round(seconds / 3600, 2)} h`;
}
const size = (bytes) => (bytes === null || bytes === undefined ? "–"
  : bytes >= 1024 ** 3 ? `${round(bytes / 1024 ** 3, 3)} GiB` : `${Math.round(bytes / 1024 ** 2)} MiB`);
const count = (number) => (number === null || number === undefined ? "?" : number.toLocaleString("en"));
const perSecond = (number) => (number === null || number === undefined ? "?" : number === 0 ? "0" : round(number, 2));
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
const plural = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
const words = (outcome) => outcome.replaceAll("_", " ");
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

const OUTCOMES = ["succeeded", "retried", "failed", "soft_time_limit", "hard_time_limit", "memory_limit", "worker_lost", "rejected", "revoked"];
const FAILED = ["failed", "soft_time_limit"];
const KILLED = ["hard_time_limit", "memory_limit", "worker_lost"];

// --- Bars -------------------------------------------------------------------------------------

// `parts`: [class, share of the whole]; `ticks`: shares. Beside it stands the same as text.
function bar(parts, ticks = []) {
  let at = 0;
  const drawn = parts.filter(([, share]) => share > 0).map(([kind, share]) => {
    const width = Math.max(1.2, Math.min(100 - at, share * 100));
    const rect = s("rect", { class: kind, x: at.toFixed(2), y: 0, width: width.toFixed(2), height: 8 });
    at += width;
    return rect;
  });
  return s("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "track", x: 0, y: 0, width: 100, height: 8 }), drawn,
    ticks.map((share) => s("rect", { class: "tick", x: (share * 100 - 0.5).toFixed(2), y: 0, width: 1, height: 8 })));
}

function slots(lane) {
  const whole = Math.max(lane.limit, lane.active, 1);
  const own = lane.active - lane.borrowed;
  return [bar([["ok", own / whole], ["borrowed", lane.borrowed / whole]]),
    `${lane.active} of ${lane.limit}`,
    lane.borrowed ? h("span", { class: "sub" }, `${lane.borrowed} borrowed`) : null,
    lane.fleet ? h("span", { class: "sub" }, `fleet limit ${lane.fleet}`) : null,
    lane.waiting ? h("span", { class: "sub" }, `${count(lane.waiting)} held`) : null];
}

function waiting(lane) {
  const objective = lane.slo;
  const late = objective && lane.oldest !== null && lane.oldest > objective.seconds;
  const found = [count(lane.backlog)];
  if (lane.backlog && lane.oldest !== null) {
    found.push(h("span", { class: late ? "sub late" : "sub" }, `oldest ${lane.oldest_estimated ? "~" : ""}${duration(lane.oldest)}`,
      objective ? ` of ${duration(objective.seconds)}` : ""));
  }
  if (lane.backlog) {
    const grows = lane.arrivals !== null && lane.drain === null;
    if (grows) found.push(h("span", { class: "sub late" }, "grows"));
    else if (lane.drain !== null) found.push(h("span", { class: "sub" }, `empty in ${duration(lane.drain)}`));
  }
  if (objective && objective.hour !== null) {
    // Never 100 % while one call was late.
    found.push(h("span", { class: "sub" }, `${Math.floor(objective.hour * 1000) / 10} % within ${duration(objective.seconds)}`));
  }
  return found;
}

const rates = (lane) => [`${perSecond(lane.departures)} out`, h("span", { class: "sub" }, `${perSecond(lane.arrivals)} in`)];

const durations = (lane) => (lane.p50 === null ? "–" : [duration(lane.p50),
  h("span", { class: "sub" }, `p95 ${duration(lane.p95)}`), h("span", { class: "sub" }, `p99 ${duration(lane.p99)}`)]);

function outcomes(counted) {
  const total = sum(Object.values(counted));
  if (!total) return h("span", { class: "sub" }, "no call ended");
  const failed = sum(FAILED.map((o) => counted[o] || 0));
  const killed = sum(KILLED.map((o) => counted[o] || 0));
  const other = (counted.rejected || 0) + (counted.revoked || 0);
  return [bar(OUTCOMES.map((o) => [o, (counted[o] || 0) / total])), plural(total, "call"),
    failed ? h("span", { class: "sub" }, `${count(failed)} failed`) : null,
    killed ? h("span", { class: "sub late" }, `${count(killed)} killed`) : null,
    other ? h("span", { class: "sub" }, `${count(other)} turned away`) : null];
}

function memory(rss, warning, most) {
  if (rss === null || !most) return "–";
  const whole = most * 1.15;
  const kind = rss > 0.9 * most ? "bad" : rss > warning ? "warn" : "ok";
  return [bar([[kind, rss / whole]], [warning / whole, most / whole]), size(rss),
    h("span", { class: "sub" }, `of ${size(warning)} / ${size(most)}`)];
}

// --- Lanes ------------------------------------------------------------------------------------

function chips(lane) {
  const found = [];
  if (lane.workers && !lane.workers.length) found.push(["warning", "no worker serves it"]);
  if (lane.gates_paused) found.push(["critical", "memory gate closed"]);
  if (lane.paused) found.push(["warning", lane.paused < lane.workers.length ? `paused on ${lane.paused} of ${lane.workers.length}` : "paused"]);
  const rest = lane.alerts.filter((a) => a.text !== "paused by an operator" && !a.text.startsWith("gate "));
  for (const alert of rest.slice(0, 2)) found.push([alert.level, alert.text]);
  if (rest.length > 2) found.push(["warning", `${rest.length - 2} more`]);
  return found.length ? h("div", { class: "chips" }, found.map(([level, text]) => h("span", { class: `chip ${level}` }, text))) : null;
}

function laneRow(lane, number) {
  const shown = open.has(lane.lane);
  const cell = (label, content, more) => h("td", { role: "cell", "data-label": label, ...more }, content);
  return h("tr", { class: "lane", role: "row", "data-key": `lane ${lane.lane}`, "data-lane": lane.lane },
    h("td", { role: "cell", "data-label": "Lane" },
      h("button", { class: "name", type: "button", "data-do": "toggle", "data-lane": lane.lane, "aria-expanded": String(shown), "aria-controls": shown ? `behind-${number}` : null }, lane.lane),
      chips(lane)),
    cell("Slots", slots(lane)), cell("Waiting", waiting(lane)), cell("Per second", rates(lane)),
    cell("Duration", durations(lane)), cell("Last hour", outcomes(lane.hour)),
    cell("Memory", memory(lane.rss, lane.rss_warning, lane.max_rss)),
    cell("Two hours", sparkline(lane.lane), { class: "two-hours" }));
}

function behind(lane, number) {
  const rows = news.lanes.lanes.filter((row) => row.lane === lane.lane);
  return h("tr", { class: "behind", role: "row", id: `behind-${number}`, "data-key": `behind ${lane.lane}` },
    h("td", { role: "cell", colspan: 8 }, h("div", { class: "grid" },
      lane.alerts.length ? h("ul", { class: "alerts wide" }, lane.alerts.map((a) => h("li", { class: `chip ${a.level}` }, a.text))) : null,
      facts.readOnly || !rows.length ? null : tools(lane),
      h("div", { class: "wide", "data-key": "history" }, h("h3", {}, "Two hours"), history(lane.lane)),
      h("div", { class: "wide", "data-key": "running" }, h("h3", {}, "Running now"), running(lane)),
      h("div", { "data-key": "workers" }, h("h3", {}, "Workers"), workers(rows)),
      h("div", { "data-key": "tasks" }, h("h3", {}, "Tasks"), tasks(lane)))));
}

function tools(lane) {
  const button = (verb, text) => h("button", { type: "button", "data-do": verb, "data-lane": lane.lane }, text);
  return h("div", { class: "tools wide", "data-key": "tools" },
    lane.paused < lane.workers.length ? button("pause", "Pause …") : null,
    lane.paused ? button("resume", "Resume …") : null, button("set", "Set the limit …"));
}

// Wide tables scroll, and so can be reached by the keyboard.
function table(label, headings, rows, none) {
  if (!rows.length) return h("p", { class: "empty" }, none);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, h("table", {},
    h("thead", {}, h("tr", {}, headings.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows)));
}

function workers(rows) {
  return table("Workers", ["Worker", "Slots", "Held", "Ended", "Memory", "Gate"], rows.map((row) => h("tr", { "data-key": row.worker },
    h("td", {}, row.worker, row.paused ? h("span", { class: "sub" }, "paused") : null),
    h("td", {}, `${row.active} of ${row.limit}`), h("td", {}, count(row.waiting)),
    h("td", {}, count(row.calls), row.failed ? h("span", { class: "sub" }, `${row.failed} failed`) : null, row.killed ? h("span", { class: "sub late" }, `${row.killed} killed`) : null),
    h("td", {}, size(row.rss)), h("td", { class: row.gate === "open" ? null : "late" }, row.gate))), "No worker serves this lane.");
}

function tasks(lane) {
  return table("Tasks", ["Task", "Ended", "p50", "p95", "p99", "Memory"], lane.tasks.map((task) => {
    const bad = OUTCOMES.slice(1).filter((o) => task.outcomes[o]).map((o) => `${count(task.outcomes[o])} ${words(o)}`);
    return h("tr", { "data-key": task.task }, h("td", {}, task.task),
      h("td", {}, count(task.calls), bad.map((text) => h("span", { class: "sub" }, text))),
      h("td", {}, duration(task.p50)), h("td", {}, duration(task.p95)), h("td", {}, duration(task.p99)), h("td", {}, size(task.rss_peak)));
  }), "No call has ended yet.");
}

function running(lane) {
  const hidden = lane.active - lane.running.length;
  return [table("Running now", ["Task", "Age against its limits", "Memory", "Worker", "Stack"], lane.running.map((call) => {
    const soft = call.soft_time_limit, hard = call.hard_time_limit, whole = hard || soft || Math.max(call.seconds, 1);
    const kind = soft && call.seconds > soft ? "bad" : soft && call.seconds > 0.8 * soft ? "warn" : "ok";
    return h("tr", { "data-key": call.task_id },
      h("td", {}, call.task, h("span", { class: "sub" }, call.task_id)),
      h("td", {}, bar([[kind, Math.min(1, call.seconds / whole)]], soft ? [soft / whole] : []), duration(call.seconds),
        h("span", { class: "sub" }, `of ${duration(soft)} / ${duration(hard)}`)),
      h("td", {}, call.rss_peak === null ? "–" : [size(call.rss_peak), h("span", { class: "sub" }, `of ${size(call.hard_rss)}`)]),
      h("td", {}, call.worker),
      h("td", {}, h("button", { type: "button", class: "small", "data-do": "stack", "data-task": call.task_id, "aria-label": `Stack of ${call.task} ${call.task_id}` }, "Stack")));
  }), "Nothing runs."), lane.running.length && hidden > 0 ? h("p", { class: "sub" }, `and ${count(hidden)} more`) : null];
}

// --- History ----------------------------------------------------------------------------------

function series(lane) {
  const found = news.history && news.history.lanes[lane];
  if (!found || !Object.keys(found).length) return null;
  const length = Object.values(found)[0].length;
  const column = (what) => found[what] || new Array(length).fill(0);
  const add = (names) => names.map(column).reduce((a, b) => a.map((value, i) => value + b[i]));
  return {
    length, succeeded: add(["succeeded", "retried"]), failed: add([...FAILED, "rejected", "revoked"]), killed: add(KILLED),
    active: column("active"), limit: column("limit"), backlog: found.backlog || new Array(length).fill(null), paused: column("paused"),
    seconds: column("seconds"), at: (i) => news.history.end - (length - i) * news.history.step,
  };
}

function columnsOf(data, height, scale) {
  const drawn = [];
  for (let i = 0; i < data.length; i += 1) {
    let y = height;
    for (const [kind, values] of [["succeeded", data.succeeded], ["failed", data.failed], ["hard_time_limit", data.killed]]) {
      if (!values[i]) continue;
      const tall = Math.max(1.5, (values[i] / scale) * height);
      y -= tall;
      drawn.push(s("rect", { class: kind, x: i, y: y.toFixed(1), width: 1, height: tall.toFixed(1) }));
    }
  }
  return drawn;
}

function sparkline(lane) {
  const data = series(lane);
  if (!data) return "–";
  const most = Math.max(1, ...data.succeeded.map((v, i) => v + data.failed[i] + data.killed[i]));
  return s("svg", { class: "spark", viewBox: `0 0 ${data.length} 30`, preserveAspectRatio: "none", role: "img", "aria-label": `Calls that ended in the last two hours: at most ${round(most / news.history.step, 2)} per second` },
    pauses(data, 30), columnsOf(data, 30, most), s("line", { class: "base", x1: 0, y1: 30, x2: data.length, y2: 30 }));
}

const pauses = (data, height) => data.paused.map((on, i) => (on ? s("rect", { class: "paused-area", x: i, y: 0, width: 1.05, height }) : null));

function curve(values, height, scale, area) {
  let path = "", from = null;
  values.forEach((value, i) => {
    if (value === null) { if (area && from !== null) path += `V${height}H${from}Z`; from = null; return; }
    const y = (height - (value / scale) * height).toFixed(1);
    if (from === null) { from = i; path += area ? `M${i} ${height}V${y}` : `M${i} ${y}`; } else path += `V${y}`;
    path += `H${i + 1}`;
  });
  if (area && from !== null) path += `V${height}H${from}Z`;
  return path;
}

function history(lane) {
  const data = series(lane);
  if (!data) return h("p", { class: "empty" }, "Nothing yet: it is kept in steps of half a minute.");
  const ended = Math.max(1, ...data.succeeded.map((v, i) => v + data.failed[i] + data.killed[i]));
  const busy = Math.max(1, ...data.active, ...data.limit);
  const backlog = Math.max(1, ...data.backlog.map((v) => v || 0));
  const band = (title, most, ...drawn) => [h("div", { class: "label" }, title, h("br"), `up to ${most}`),
    s("svg", { class: "band", viewBox: `0 0 ${data.length} 50`, preserveAspectRatio: "none", "aria-hidden": "true" }, pauses(data, 50), drawn,
      s("line", { class: "base", x1: 0, y1: 50, x2: data.length, y2: 50 }))];
  const total = (values) => count(Math.round(sum(values)));
  return [h("div", { class: "bands", tabindex: 0, role: "img", "data-do": "history", "data-lane": lane,
    "aria-label": `Last two hours: ${total(data.succeeded)} ended well, ${total(data.failed)} failed, ${total(data.killed)} killed; at most ${Math.max(...data.active)} at once; backlog up to ${count(Math.max(0, ...data.backlog.map((v) => v || 0)))}. Arrow keys read single moments.` },
    band("ended / s", perSecond(ended / news.history.step), columnsOf(data, 50, ended)),
    band("slots in use", busy, s("path", { class: "line-area", d: curve(data.active, 50, busy, true) }), s("path", { class: "line-limit", d: curve(data.limit.map((v) => v || null), 50, busy, false) })),
    band("backlog", count(backlog), s("path", { class: "line-area", d: curve(data.backlog, 50, backlog, true) }), s("path", { class: "line-stroke", d: curve(data.backlog, 50, backlog, false) })),
    h("div", {}), h("div", { class: "axis", "aria-hidden": "true" }, [0, 0.25, 0.5, 0.75, 1].map((share) => h("span", {}, clock(data.at(Math.round(share * data.length))).slice(0, 5))))),
  h("p", { class: "readout", "aria-live": "polite", "data-key": `readout ${lane}` }, readouts.get(lane) || "")];
}

const readouts = new Map();
const places = new Map();

function readOut(lane, place) {
  const data = series(lane);
  if (!data) return;
  const i = Math.max(0, Math.min(data.length - 1, place));
  places.set(lane, i);
  const known = data.backlog[i];
  const mean = data.seconds[i] / Math.max(1, data.succeeded[i] + data.failed[i] + data.killed[i]);
  readouts.set(lane, `${clock(data.at(i))}: ${count(data.succeeded[i])} ended well, ${count(data.failed[i])} failed, ${count(data.killed[i])} killed`
    + (mean ? `, ${duration(mean)} on average` : "") + `; ${data.active[i]} of ${data.limit[i]} slots; backlog ${known === null ? "unknown" : count(known)}`
    + (data.paused[i] ? "; paused" : ""));
  render();
}

// --- The rest of the page ---------------------------------------------------------------------

function totals(doc) {
  const of = (what) => sum(doc.summary.map((lane) => lane[what] || 0));
  const hour = (names) => sum(doc.summary.map((lane) => sum(names.map((o) => lane.hour[o] || 0))));
  const tile = (title, value, more) => h("div", { "data-key": title }, h("dt", {}, title), h("dd", {}, value, more ? h("small", {}, ` ${more}`) : null));
  const known = doc.summary.some((lane) => lane.backlog !== null);
  return [tile("Workers", count(doc.workers.length), doc.silent.length ? `${doc.silent.length} silent` : null),
    tile("Slots in use", count(of("active")), `of ${count(of("limit"))}`),
    tile("Waiting at the broker", known ? count(of("backlog")) : "?"),
    tile("Started per second", perSecond(of("departures"))),
    tile("Ended in the last hour", count(hour(OUTCOMES))),
    tile("Failed", count(hour(FAILED))), tile("Killed", count(hour(KILLED)))];
}

function notes(doc) {
  const chip = (text, level) => h("li", { class: `chip ${level}`, "data-key": text }, text);
  const found = doc.silent.map((name) => (doc.plain.includes(name) ? chip(`${name} runs without budgets, or with an older version of them`, "warning")
    : chip(`no answer from ${name}: it hangs, was killed, or runs without budgets`, "critical")));
  if (!doc.workers.length) found.push(chip("no worker answers", "warning"));
  return found.length ? h("ul", { class: "alerts notes" }, found) : null;
}

const limitKey = (view) => JSON.stringify([view.name, view.key]);

function limitsList() {
  const told = news.limits;
  const now = told.problem ? [h("p", { class: "late", "data-key": "problem" }, `The Redis of the limits does not answer: ${told.problem}`)] : [];
  return [...now, table("Limits over the fleet", ["Limit", "In use", "Rate", "Waiting", "State", "Holders"], told.limits.map(limitRow), "None is in use."),
    told.more ? h("p", { class: "sub" }, `and ${count(told.more)} more`) : null];
}

function limitRow(view) {
  const states = [view.closed ? h("span", { class: "sub late" }, `closed for ${duration(view.closed)}`) : null,
    view.changed ? h("span", { class: "sub" }, `changed by ${view.changed.by}, ${new Date(view.changed.at * 1000).toLocaleString()}`) : null].filter(Boolean);
  return h("tr", { "data-key": limitKey(view), "data-limit": view.title },
    h("td", {}, view.title),
    h("td", {}, view.limit === null ? "–" : [bar([[view.in_use < view.limit ? "ok" : "warn", view.in_use / Math.max(view.limit, view.in_use, 1)]]), `${view.in_use} of ${view.limit}`]),
    h("td", {}, view.rate === null ? "–" : [view.rate, h("span", { class: "sub" }, `${count(view.rate_left)} left`)]),
    h("td", {}, count(view.waiting), view.oldest_wait === null ? null : h("span", { class: "sub" }, `oldest ${duration(view.oldest_wait)}`)),
    h("td", {}, states.length ? states : "open"),
    h("td", {}, holdersOf(view)));
}

function holdersOf(view) {
  if (!view.holders.length) return "–";
  return h("details", { "data-key": "holders" }, h("summary", {}, plural(view.holders.length + view.more_holders, "holder")),
    h("ul", { class: "holders" }, view.holders.map((one) => h("li", { "data-key": `${one.name} ${one.offered}` }, one.name,
      h("span", { class: "sub" }, `${one.offered ? "is offered" : "holds"} ${plural(one.places, "place")}, lease for ${duration(one.seconds)}`),
      facts.readOnly || one.offered ? null : h("button", { type: "button", class: "small", "data-do": "release", "data-limit": view.name, "data-holder": one.name, "aria-label": `Release ${one.name}` }, "Release …")))),
    view.more_holders ? h("p", { class: "sub" }, `and ${count(view.more_holders)} more`) : null);
}

function killsList() {
  const told = news.kills;
  if (!told || !told.groups) return [h("p", { class: "empty" }, "Not known yet.")];
  if (!told.total) return [h("p", { class: "empty" }, "No call was killed.")];
  return told.groups.map((group) => h("details", { "data-key": `${group.where} ${group.task} ${group.outcome}` },
    h("summary", {}, `${count(group.kills)} × `, h("code", {}, group.where), h("span", { class: "sub" }, `${group.task}, ${words(group.outcome)}; lane ${group.last.lane}; last ${clock(group.last.at)}`)),
    h("p", { class: "sub" }, `${group.last.task_id} on ${group.last.worker}`),
    stackOf(group.last.stack) || h("p", { class: "empty" }, "Where it was is not known.")));
}

function stackOf(frames) {
  return frames ? h("pre", { tabindex: 0 }, frames.map((f) => `File "${f.file}", line ${f.line}, in ${f.function}`).join("\n")) : null;
}

function state() {
  const doc = news.lanes, lost = news.stale !== null || news.problem;
  byId("state").className = lost ? "lost" : doc ? "live" : "";
  byId("state-text").textContent = lost ? "no news" : doc ? `live, ${clock(news.takenAt / 1000)}` : "asking the workers …";
  const since = doc ? `No news since ${clock(news.takenAt / 1000)} (${duration(Math.round((Date.now() - news.takenAt) / 1000))}): ` : "No news yet: ";
  byId("stale").hidden = !lost;
  byId("stale").textContent = lost ? since + news.problem : "";
}

let announced = null;
function announce(doc) {
  const now = new Set(doc.summary.flatMap((lane) => lane.alerts.filter((a) => a.level !== "info").map((a) => `${lane.lane}: ${a.text}`)));
  const fresh = announced ? [...now].filter((text) => !announced.has(text)) : [];
  announced = now;
  if (fresh.length) byId("announce").textContent = fresh.slice(0, 3).join(". ");
  const bad = doc.summary.filter((lane) => lane.alerts.some((a) => a.level === "critical")).length;
  document.title = `${bad ? `(${bad}) ` : ""}Lanes${facts.app ? ` · ${facts.app}` : ""}`;
}

function render() {
  state();
  const doc = news.lanes;
  if (!doc) return;
  show("totals", totals(doc));
  show("notes", notes(doc));
  show("rows", doc.summary.flatMap((lane, i) => [laneRow(lane, i), open.has(lane.lane) ? behind(lane, i) : null]));
  show("kills", killsList());
  byId("limits-box").hidden = !news.limits || !((news.limits.limits || []).length || news.limits.problem);
  if (!byId("limits-box").hidden) show("limits", limitsList());
  byId("kills-total").textContent = news.kills && news.kills.total ? count(news.kills.total) : "";
}

// --- News -------------------------------------------------------------------------------------

function take(doc) {
  news.lanes = doc;
  news.stale = doc.stale_seconds === undefined ? null : doc.stale_seconds;
  news.takenAt = Date.now() - (news.stale || 0) * 1000;
  news.problem = "";
  announce(doc);
  render();
}

function lose(problem) {
  news.problem = problem;
  state();
}

async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" }, cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `${answer.status}`);
  return answer.json();
}

async function poll() {
  try {
    const doc = await ask("lanes.json");
    news.kills = await ask("kills.json");
    news.limits = await ask("limits.json");
    take(doc);
  } catch (error) {
    lose(error.message);
  }
}

function listen() {
  const stream = new EventSource("events");
  let polling = null;
  stream.addEventListener("open", () => { clearInterval(polling); polling = null; });
  stream.addEventListener("lanes", (event) => take(JSON.parse(event.data)));
  stream.addEventListener("kills", (event) => { news.kills = JSON.parse(event.data); render(); });
  stream.addEventListener("limits", (event) => { news.limits = JSON.parse(event.data); render(); });
  stream.addEventListener("stale", (event) => {
    const told = JSON.parse(event.data);
    if (told.stale_seconds !== null) news.takenAt = Date.now() - told.stale_seconds * 1000;
    news.stale = told.stale_seconds;
    lose(told.problem || "the workers are not asked any more");
  });
  stream.addEventListener("error", () => {
    // Where there is no stream, or no more of them, the page asks by itself.
    if (stream.readyState !== EventSource.CLOSED) { lose("the server of this page does not answer"); return; }
    if (polling === null) { poll(); polling = setInterval(poll, Math.max(2, facts.interval) * 1000); }
  });
}

async function keepHistory() {
  try {
    news.history = await ask("history.json");
    render();
  } catch (error) {
    // It is asked for again; the rest of the page says what is wrong.
  }
  setTimeout(keepHistory, news.history ? 30000 : 5000);
}

// --- What people do ---------------------------------------------------------------------------

function dialog(title, body, yes) {
  const box = byId("dialog");
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...body.filter(Boolean));
  byId("dialog-yes").hidden = !yes;
  byId("dialog-yes").textContent = yes || "";
  byId("dialog-no").textContent = yes ? "No" : "Close";
  box.returnValue = "no";
  if (!box.open) box.showModal();
  return new Promise((resolve) => box.addEventListener("close", () => resolve(box.returnValue === "yes"), { once: true }));
}

async function send(path, body, title) {
  let lines, ok = false;
  try {
    const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json", "X-Lanes-Xsrf": facts.xsrf }, body: JSON.stringify(body) });
    const text = await answer.text();
    ok = answer.ok;
    const told = (answer.headers.get("Content-Type") || "").startsWith("application/json") ? JSON.parse(text) : { done: [], failed: [{ worker: "", text }] };
    lines = [...told.done, ...told.failed].map((one) => `${one.worker ? `${one.worker}: ` : ""}${one.text}`);
  } catch (error) {
    lines = [`It was not sent: ${error.message}`];
  }
  byId("announce").textContent = lines.join(". ");
  await dialog(ok ? title : "That failed", lines.map((line) => h("p", {}, line)));
}

const path = (...parts) => parts.map(encodeURIComponent).join("/");

const doing = {
  toggle({ lane }) {
    if (!open.delete(lane)) open.add(lane);
    render();
  },
  async stack({ task }) {
    let body;
    try {
      const [found] = await ask(`stack.json?task_id=${encodeURIComponent(task)}`);
      body = found ? [h("p", {}, `${found.task}, for ${duration(found.seconds)}, on ${found.worker}`), stackOf(found.stack) || h("p", {}, "Where it is is not known.")]
        : [h("p", {}, "It does not run any more.")];
    } catch (error) {
      body = [h("p", {}, error.message)];
    }
    dialog(`Stack of ${task}`, body);
  },
  async pause({ lane }) {
    const text = "No new calls start on its workers; those that run finish, and further ones wait at the broker. It lasts until the lane is resumed, or a worker restarts.";
    if (await dialog(`Pause lane ${lane}?`, [h("p", {}, text)], "Pause")) send(path("lanes", lane, "pause"), {}, `Lane ${lane} is paused`);
  },
  async resume({ lane }) {
    if (await dialog(`Resume lane ${lane}?`, [h("p", {}, "Its workers start calls again.")], "Resume")) send(path("lanes", lane, "resume"), {}, `Lane ${lane} is resumed`);
  },
  async set({ lane }) {
    const rows = news.lanes.lanes.filter((row) => row.lane === lane);
    const input = h("input", { type: "number", id: "limit", min: 1, step: 1, value: Math.max(1, ...rows.map((row) => row.limit)), required: true });
    const body = [h("p", {}, "How many calls each worker of the lane runs at once, until it restarts. Change the lane's definition as well."), h("label", { for: "limit" }, "Calls at once, per worker"), input];
    if (!(await dialog(`Set the limit of lane ${lane}?`, body, "Set"))) return;
    send(path("lanes", lane, "set"), { concurrency: Number(input.value) }, `Lane ${lane} has a new limit`);
  },
  async release({ limit, holder }) {
    const text = "Its lease would end by itself. If its process lives, it takes its places again where there is still room; else its call is ended.";
    if (await dialog("Take its places away?", [h("p", {}, holder), h("p", {}, text)], "Release")) send(path("limits", limit, "release"), { holder }, "Its places are free");
  },
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button) doing[button.dataset.do](button.dataset);
});
document.addEventListener("pointermove", (event) => {
  const bands = event.target.closest("[data-do=history]");
  const band = bands && bands.querySelector(".band");
  if (!band) return;
  const box = band.getBoundingClientRect();
  const share = (event.clientX - box.left) / box.width;
  const data = series(bands.dataset.lane);
  if (data && share >= 0 && share <= 1) readOut(bands.dataset.lane, Math.floor(share * data.length));
});
document.addEventListener("keydown", (event) => {
  const bands = event.target.closest("[data-do=history]");
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!bands || !step) return;
  event.preventDefault();
  const lane = bands.dataset.lane, data = series(lane);
  if (data) readOut(lane, (places.has(lane) ? places.get(lane) : data.length) + step);
});

byId("why").addEventListener("submit", async (event) => {
  event.preventDefault();
  const box = byId("because");
  box.replaceChildren(h("p", { class: "empty" }, "Asking …"));
  try {
    const found = await ask(`why.json?task_id=${encodeURIComponent(byId("task-id").value.trim())}`);
    box.replaceChildren(h("p", {}, found.text), found.remedy ? h("p", { class: "remedy" }, found.remedy) : "");
  } catch (error) {
    box.replaceChildren(h("p", { class: "late" }, error.message));
  }
});
byId("cancel").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = byId("scope").value.trim();
  const box = h("input", { type: "checkbox", id: "running" });
  const body = [h("p", {}, "Its waiting calls are revoked, and those that are sent later."), h("label", { class: "check", for: "running" }, box, "End its running calls too (prefork only)")];
  if (await dialog(`Cancel scope ${name}?`, body, "Cancel it")) send(path("scopes", name, "cancel"), { running: box.checked }, `Scope ${name} is cancelled`);
});

// The cookie has replaced the token of the address, which would else stay in the history.
const address = new URL(location.href);
if (address.searchParams.has("token")) {
  address.searchParams.delete("token");
  window.history.replaceState(null, "", address);
}
byId("app").textContent = facts.app ? `of ${facts.app}` : "";
if (facts.home) {
  byId("home").hidden = false;
  byId("home").href = facts.home[0];
  byId("home").textContent = facts.home[1];
}
byId("cancel-box").hidden = facts.readOnly;
setInterval(state, 1000);
listen();
keepHistory();
