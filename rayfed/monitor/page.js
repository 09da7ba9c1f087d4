"use strict";
const $ = selector => document.querySelector(selector), SVG = "http://www.w3.org/2000/svg";
const INTERVAL = {busy: 2000, idle: 10000};  // milliseconds between two requests
const TIMEOUT = 20000;
let shown = null, timer = 0, requests = 0, filterText = "";
const opened = new Set();  // ids of sweeps whose runs are shown, and names of parts that are
const chosen = new Set();  // ids of runs to be laid over one another
const view = {tab: "Scores", log: false, smooth: 0, hidden: new Set()};  // tab: of a run; of all curves; hidden: "TITLE\nLINE"
let redraw = () => {};  // shows again what was fetched last

// Text is only ever inserted as text: names of runs and clients come from files of other people.
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes || {})) if (v !== null && v !== undefined) node.setAttribute(k, v);
  node.append(...children.filter(c => c !== null && c !== undefined && c !== ""));
  return node;
}
function draw(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes || {})) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  return node;
}
function number(v, unit) {
  if (v === null || v === undefined || !Number.isFinite(v)) return "–";
  if (unit === "fraction") return (100 * v).toFixed(1) + " %";
  if (unit && unit.startsWith("bytes")) return bytes(v);
  const size = Math.abs(v);
  if (Number.isInteger(v)) return v.toLocaleString("en");
  if (size >= 1000) return Math.round(v).toLocaleString("en");
  if (size >= 100) return v.toFixed(1);
  if (size >= 1) return v.toFixed(2);
  return size >= 0.001 ? v.toFixed(3) : v.toExponential(1);
}
function bytes(v, text = n => n.toFixed(1)) {
  if (v === null || v === undefined) return "–";
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (v < 1000 || unit === "TB") return (unit === "B" ? Math.round(v) : text(v)) + " " + unit;
    v /= 1000;
  }
}
function duration(s) {
  if (s === null || s === undefined) return "–";
  if (s < 90) return (s < 10 ? s.toFixed(1) : Math.round(s)) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  return s < 172800 ? (s / 3600).toFixed(1) + " h" : (s / 86400).toFixed(1) + " d";
}
const busy = status => status === "running" || status === "starting";
const badge = status => el("span", {class: "state " + status}, status);
const problem = reason => el("p", {class: "problem"}, "cannot be read: " + reason);
function unitOf(name) {
  if (name.startsWith("accuracy")) return "fraction";
  return name.startsWith("bytes") || name === "ray" ? "bytes" : "";
}
function progressBar(round, rounds) {
  const bar = el("i");
  bar.style.width = Math.min(100, 100 * (round || 0) / (rounds || 1)) + "%";
  return el("div", {class: "bar"}, bar);
}
const localTime = iso => (iso || "").replace("T", " ");

// -- pictures, which uPlot draws --------------------------------------------------------------------------------------

const HEIGHT = 190, FONT = "12px system-ui, 'Segoe UI', Roboto, sans-serif";
let plots = [], waiting = [];  // charts that are shown; what makes those of the nodes to be shown next
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const integerText = v => Number.isInteger(v) ? v.toLocaleString("en") : "";
const axisText = unit => v => {
  if (unit === "fraction") return Math.round(v * 1000) / 10 + " %";
  if (unit === "bytes") return bytes(v, n => String(Number(n.toPrecision(3))));
  return Math.abs(v) >= 1e5 ? v.toExponential(0) : String(Math.round(v * 1e6) / 1e6);
};
// The place nearest to i where there is a value: lines are measured in rounds of their own.
function nearest(values, i) {
  for (let d = 0; d < values.length; d++) for (const j of [i - d, i + d]) if (values[j] !== null && values[j] !== undefined) return j;
  return i;
}

// A figure with a chart. data: [xs, ys, ...]; series: of each ys what uPlot takes, and `about`, a sentence; given: more options of uPlot;
// xText, yText: texts of numbers on the axes; toggled(i, shown): told of a line that is switched on or off, without which none can be;
// note: below it.
function chart(title, data, series, {xText, yText, toggled, note, label, ...given}) {
  const place = el("div", {class: toggled ? "plot" : "plot fixed", role: "img", "aria-label": label || title});
  const rest = {idxs: data.map(values => nearest(values, values.length - 1))};
  const axis = (texts, more) => ({
    stroke: () => css("--soft"), font: FONT, ticks: {show: false}, values: (u, found) => found.map(v => v === null ? "" : texts(v)), ...more});
  const buttons = u => u.root.querySelectorAll(".u-series th").forEach((head, i) => {
    if (!i || !toggled) return;
    Object.entries({tabindex: "0", role: "button", title: series[i - 1].about || ""}).forEach(([k, v]) => head.setAttribute(k, v));
    head.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); head.click(); } });
  });
  const options = {
    height: HEIGHT, legend: {markers: {width: 3}}, focus: {alpha: 0.4},
    cursor: {y: false, drag: {x: false, y: false}, dataIdx: (u, i, at) => i ? nearest(data[i], at) : at},
    axes: [axis(xText, {grid: {show: false}, size: 28}), axis(yText, {grid: {stroke: () => css("--line"), width: 1}, size: 52})],
    series: [{label: "round"}, ...series], ...given,
    hooks: {
      ready: [buttons, u => u.setLegend(rest)],
      setCursor: [u => { if (u.cursor.left < 0) u.setLegend(rest); }],
      setSeries: [(u, i, {show}) => { if (toggled && i && show !== undefined && show !== null) toggled(i - 1, show, u); }], ...given.hooks}};
  waiting.push(() => new uPlot({...options, width: place.clientWidth || 300}, data, place));
  return el("figure", {}, el("figcaption", {}, title), place, note ? el("div", {class: "reading"}, note) : "");
}
addEventListener("resize", () => plots.forEach(u => u.setSize({width: u.root.parentElement.clientWidth || 300, height: HEIGHT})));

// An exponential mean that does not lean to its first value, of weight 0 to 1.
function smoothed(points, weight) {
  let sum = 0, mass = 0;
  return points.map(([round, value]) => {
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return [round, sum / mass];
  });
}

// abouts: line -> what it is, in a sentence.
function curves(title, lines, unit, abouts) {
  const names = Object.keys(lines).filter(n => lines[n].length);
  if (!names.length) return null;
  const key = n => title + "\n" + n, colour = n => SCOPES[n] || COLOURS[names.indexOf(n) % COLOURS.length];
  const shownLines = names.filter(n => !view.hidden.has(key(n))), log = view.log && shownLines.every(n => lines[n].every(p => p[1] > 0));
  const found = view.smooth ? [...names.map(n => smoothed(lines[n], view.smooth)), ...names.map(n => lines[n])] : names.map(n => lines[n]);
  const data = uPlot.join(found.map(points => [points.map(p => p[0]), points.map(p => p[1])]));
  const series = found.map((_, i) => {
    const n = names[i % names.length], raw = i >= names.length;  // raw: what is smoothed, faint and without a legend
    return {
      label: names.length > 1 || n !== title ? n : "value", about: (abouts || {})[n], stroke: colour(n), width: 1.8, spanGaps: true,
      alpha: raw ? 0.3 : 1, class: raw ? "raw" : null, show: !view.hidden.has(key(n)), points: {size: 5, fill: colour(n)},
      value: (u, v) => v === null || v === undefined ? "–" : number(v, unit)};
  });
  const toggled = (i, on, u) => {
    if (i >= names.length) return;
    view.hidden[on ? "delete" : "add"](key(names[i]));
    if (view.smooth) u.setSeries(i + 1 + names.length, {show: on});
  };
  const range = (u, low, high) => {
    const [a, b] = low === 0 && high === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);
    return unit === "fraction" ? [a, Math.min(b, 1.005)] : [a, b];
  };
  return chart(title, data, series, {
    xText: integerText, yText: axisText(unit), toggled, label: title + (log ? ", logarithmic" : ""),
    scales: {x: {time: false}, y: log ? {distr: 3} : {range}}});
}

const bars = more => ({points: {show: false}, paths: uPlot.paths.bars({size: [0.92, Infinity], ...more})});

function histogram(measure, unit) {
  const {counts, edges, name} = measure, worst = measure["worst decile"], texts = axisText(unit);
  const mark = u => {
    const x = u.valToPos(worst, "x", true), {ctx, bbox} = u;
    ctx.fillStyle = COLOURS[6];
    ctx.fillRect(x - devicePixelRatio, bbox.top, 2 * devicePixelRatio, bbox.height);
  };
  const series = [{label: "clients", fill: COLOURS[0], value: (u, v) => v === null || v === undefined ? "–" : number(v), ...bars({align: 1})}];
  const note = `mean ${number(measure.mean, unit)}, median ${number(measure.median, unit)}, worst tenth (line) ${number(worst, unit)}`;
  return chart("Clients by " + name, [edges.slice(0, -1), counts], series, {
    xText: texts, yText: integerText, note, label: "clients by " + name, hooks: {draw: [mark]},
    scales: {x: {time: false, range: [edges[0], edges.at(-1)]}, y: {range: (u, low, high) => [0, high * 1.05 || 1]}},
    series: [{label: name + " from", value: (u, v) => v === null || v === undefined ? "–" : texts(v)}, ...series]});
}

function stack(clusters) {
  const {rounds, names, sizes, moved} = clusters, places = rounds.map((_, t) => t);
  const upTo = k => places.map(t => sizes.slice(0, k + 1).reduce((sum, row) => sum + row[t], 0));
  const order = names.map((_, k) => k).reverse();  // the highest first, which the others are drawn over
  const series = order.map(k => ({
    label: String(names[k]), fill: COLOURS[k % COLOURS.length], value: (u, v, i, at) => at === null ? "–" : number(sizes[k][at]), ...bars()}));
  const label = v => rounds[v] === undefined ? "" : String(rounds[v]);
  return chart("Clients per cluster", [places, ...order.map(upTo)], series, {
    xText: label, yText: integerText, note: "last evaluated round: " + moved.at(-1) + " clients changed cluster",
    label: "clients per cluster over rounds", scales: {x: {time: false, range: [-0.5, rounds.length - 0.5]}, y: {range: (u, low, high) => [0, high]}},
    series: [{label: "round", value: (u, v) => v === null || v === undefined ? "–" : label(v)}, ...series]});
}

function spark(points) {
  const svg = draw("svg", {viewBox: "0 0 120 34", "aria-hidden": "true", preserveAspectRatio: "none"});
  if (points.length < 2) return svg;
  const values = points.map(p => p[1]), low = Math.min(...values), high = Math.max(...values);
  const first = points[0][0], last = points.at(-1)[0];
  const x = round => (2 + (round - first) / (last - first) * 116).toFixed(1);
  const y = value => (31 - (value - low) / (high - low || 1) * 28).toFixed(1);
  const places = points.map(p => x(p[0]) + "," + y(p[1])).join(" ");
  svg.append(draw("polyline", {points: places, fill: "none", stroke: COLOURS[0], "stroke-width": 1.6}));
  return svg;
}

const OVER = "over:";  // begins the address of several runs, as JSON

// -- the list ---------------------------------------------------------------------------------------------------------

function runEntry(r) {
  const name = r.group ? r.id.slice(r.id.indexOf("/") + 1) : r.name;
  const about = [r.method, r.seed != null ? "seed " + r.seed : "", localTime(r.started)].filter(Boolean).join(" · ");
  const took = r.seconds != null ? "in " + duration(r.seconds) : r.note || "";
  const time = busy(r.status) && r.eta_s != null ? duration(r.eta_s) + " left" : took;
  const progress = `${number(r.round)} of ${number(r.rounds)}` + (time && time.length < 16 ? ", " + time : "");
  const box = el("input", {type: "checkbox", "aria-label": "lay " + r.id + " over others", title: "lay over others"});
  box.checked = chosen.has(r.id);
  box.addEventListener("change", () => { chosen[box.checked ? "add" : "delete"](r.id); redraw(); });
  return el("li", {class: "row"}, box, el("a", {class: "run", href: "#" + encodeURIComponent(r.id)},
    el("div", {}, el("b", {}, name), el("div", {class: "soft"}, about)),
    el("div", {class: "value"}, r.metric ? el("b", {}, number(r.value, unitOf(r.metric))) : "", el("div", {class: "soft"}, r.metric || "")),
    el("div", {}, badge(r.status), el("div", {class: "soft"}, r.rounds != null ? progress : r.note || ""), progressBar(r.round, r.rounds)),
    spark(r.spark || [])));
}
function sweepEntry(s, runs) {
  const about = ["sweep of " + s.method, localTime(s.started)].join(" · ");
  const trials = `${number(s.trials.complete)} of ${number(s.trials.planned)} trials`;
  const summary = el("summary", {class: "run"},
    el("div", {}, el("b", {}, s.name), el("div", {class: "soft"}, about)),
    el("div", {class: "value"}, s.best != null ? el("b", {}, number(s.best, unitOf(s.metric))) : "", el("div", {class: "soft"}, "best " + s.metric)),
    el("div", {}, badge(s.status), el("div", {class: "soft"}, trials), progressBar(s.round, s.rounds)),
    el("div", {class: "soft"}, runs.length + (runs.length === 1 ? " run" : " runs")));
  const open = filterText || opened.has(s.id) ? "" : null;
  const box = el("details", {class: "sweep", open}, summary, el("ul", {class: "list"}, ...runs.map(runEntry)));
  box.addEventListener("toggle", () => { if (!filterText) opened[box.open ? "add" : "delete"](s.id); });
  return box;
}
function list(data) {
  const sweepOf = r => (data.sweeps || []).find(s => s.id === "." || r.id.startsWith(s.id + "/"));
  const matches = r => !filterText || [r.id, r.method, r.status].join(" ").toLowerCase().includes(filterText);
  const out = [];
  const section = (title, runs) => {
    if (!runs.length) return;
    out.push(el("h2", {}, `${title} (${runs.length})`));
    const groups = new Map();
    for (const r of runs) {
      const group = sweepOf(r) || (r.group ? r.id.split("/")[0] : "");
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(r);
    }
    for (const [group, members] of groups) {
      if (group.trials) { out.push(sweepEntry(group, members)); continue; }
      if (group) out.push(el("h3", {}, group));
      out.push(el("ul", {class: "list"}, ...members.map(runEntry)));
    }
  };
  const laid = data.runs.map(r => r.id).filter(id => chosen.has(id));
  if (laid.length > 1) {
    const there = "#" + encodeURIComponent(OVER + JSON.stringify(laid));
    out.push(el("p", {}, el("a", {class: "over", href: there}, `Lay ${laid.length} runs over one another`)));
  }
  const found = data.runs.filter(matches), running = r => busy((sweepOf(r) || r).status);
  section("Running", found.filter(running));
  section("Ended", found.filter(r => !running(r)));
  if (!out.length) out.push(el("p", {class: "soft"}, data.runs.length ? "No run matches." : "No runs here yet; this page refreshes by itself."));
  return out;
}

// -- a run ------------------------------------------------------------------------------------------------------------

// textColumns: indices of the columns that are aligned to the left
function table(head, body, textColumns) {
  const kind = i => textColumns.includes(i) ? "text" : null;
  const headRow = el("tr", {}, ...head.map((cell, i) => el("th", {class: kind(i)}, cell)));
  const rows = body.map(line => el("tr", {}, ...line.map((cell, i) => el("td", {class: kind(i)}, cell))));
  return el("div", {class: "wide"}, el("table", {}, el("thead", {}, headRow), el("tbody", {}, ...rows)));
}
function part(title, value, render) {
  if (value === null || value === undefined) return [];
  const nodes = value.problem ? [problem(value.problem)] : render(value);
  return nodes.length ? [el("h2", {}, title), ...nodes] : [];
}
function text(v, unit) {
  if (v === null || v === undefined) return "–";
  return typeof v === "number" ? number(v, unit) : String(v);
}
const fact = (name, value) => el("li", {}, el("span", {class: "soft"}, name + " "), el("b", {}, value));
const grid = figures => el("div", {class: "grids"}, ...figures.filter(Boolean));
const panel = p => curves(p.name, p.lines, unitOf(p.name), p.abouts);

// What all curves of the page obey.
function tools() {
  const log = el("input", {type: "checkbox", id: "log"}), smooth = el("input", {type: "range", id: "smooth", min: 0, max: 0.95, step: 0.05});
  log.checked = view.log;
  smooth.value = view.smooth;
  log.addEventListener("change", () => { view.log = log.checked; redraw(); });
  smooth.addEventListener("change", () => { view.smooth = Number(smooth.value); redraw(); });
  return el("div", {class: "tools"}, el("label", {}, log, " logarithmic"), el("label", {}, "smoothing ", smooth));
}
// A part that opens, and stays open when the page looks again.
function folded(title, ...content) {
  const box = el("details", {open: opened.has(title) ? "" : null}, el("summary", {}, title), ...content);
  box.addEventListener("toggle", () => opened[box.open ? "add" : "delete"](title));
  return box;
}
function names(panels) {
  const known = panels.flatMap(p => Object.entries(p.abouts || {}).map(([line, about]) => [p.name === line ? line : p.name + "/" + line, about]));
  return known.length ? [folded("What the names mean", table(["name", "what"], known, [0, 1]))] : [];
}

function facts(r) {
  const live = r.live || {}, items = [fact("round", `${text(live.round)} of ${text(live.rounds)}`)];
  if (busy(r.status)) items.push(fact("clients per second", text(live.clients_per_s)));
  if (live.bytes != null) items.push(fact("sent", bytes(live.bytes)));
  if (busy(r.status)) items.push(fact("left", duration(live.eta_s)));
  if (r.about.problem) return el("ul", {class: "facts"}, ...items, problem(r.about.problem));
  for (const [name, value] of Object.entries(r.about)) {
    if (name !== "folder") items.push(fact(name, name === "wall time" ? duration(value) : String(value)));
  }
  return el("ul", {class: "facts"}, ...items);
}
function clients(s) {
  const held = s.unseen ? `, ${s.unseen} held out` : "";
  const figures = s.measures.flatMap(m => {
    const unit = unitOf(m.name);
    return [histogram(m, unit), curves(m.name + " of the worst tenth", {"worst tenth": m.worst}, unit)];
  });
  return [
    el("p", {class: "soft"}, `Round ${s.round}: ${s.clients} clients that take part` + held), grid(figures),
    el("h3", {}, "Worst by " + s.measures[0].name),
    table(s.columns, s.worst.map(line => line.map((cell, i) => text(cell, unitOf(s.columns[i])))), [0])];
}
function actors(a, running) {
  const host = a.host ? `; server on ${a.host}` : "";
  const away = a.here ? "" : ", not the machine of this page: its processes cannot be looked up";
  const condition = p => {
    if (p.replaced) return `replaced ${p.replaced} ×`;
    if (p.alive === undefined) return "not visible from here";
    return p.alive ? "alive" : running ? "gone" : "ended";
  };
  const body = a.processes.map(p => [
    p.what, condition(p), text(p.pid && String(p.pid)), p.rss ? bytes(p.rss) : "–", text(p.device), text(p.threads),
    p.node ? p.node.slice(0, 8) : "–"]);
  return [
    el("p", {class: a.restarts ? "problem" : "soft"}, `${a.restarts} replaced since the start` + host + away),
    table(["", "state", "pid", "memory", "device", "threads", "node"], body, [0, 1, 4, 6])];
}
function events(list) {
  if (!list.length) return [];
  const body = list.map(e => [localTime(String(e.time || "").slice(0, 19)), String(e.kind), fields(e)]);
  const made = table(["time (UTC)", "what", ""], body, [0, 1, 2]);
  made.classList.add("events");
  return [made];
}
function fields(event) {
  const value = v => {
    if (typeof v === "string") return v;
    return Array.isArray(v) && typeof v[0] === "object" ? v.length : JSON.stringify(v);
  };
  const shownFields = Object.entries(event).filter(([k]) => !["time", "kind", "fence"].includes(k));
  const all = shownFields.map(([k, v]) => k + ": " + value(v)).join(" · ");
  return all.length > 300 ? all.slice(0, 299) + "…" : all;
}
function clusterFigures(c, panels) {
  const moved = c.rounds.map((round, i) => [round, c.moved[i]]).slice(1);
  return [grid([stack(c), curves("Clients that changed cluster", {moved}, ""), ...panels.map(panel)])];
}

const TABS = ["Scores", "Clients", "Log", "Settings"];
function tabs() {
  return el("div", {class: "tabs", role: "tablist"}, ...TABS.map(name => {
    const tab = el("button", {type: "button", role: "tab", "aria-selected": String(view.tab === name)}, name);
    tab.addEventListener("click", () => { view.tab = name; refresh(); });
    return tab;
  }));
}

function detail(r, log) {
  if (r.problem) return [el("h2", {}, r.name), problem(r.problem)];
  const live = r.live || {}, panels = r.curves.problem ? [] : r.curves;
  const scores = panels.filter(p => p.scoped), found = panels.filter(p => p.name.startsWith("clusters/"));
  const others = panels.filter(p => !p.scoped && !found.includes(p));
  const none = what => [el("p", {class: "soft"}, what)];
  const content = {
    Scores: () => [
      scores.length ? tools() : "",
      ...part("Scores", r.curves, () => scores.length ? [grid(scores.map(panel))] : none("No round has been evaluated yet.")),
      ...part("Clusters", r.clusters, c => clusterFigures(c, found)),
      ...(others.length ? [el("h2", {}, "Cost"), grid(others.map(panel))] : [])],
    Clients: () => {
      const nodes = part("Clients", r.spread, clients);
      return nodes.length ? nodes : none("No scores of clients yet.");
    },
    Log: () => [...part("Actors", r.actors, a => actors(a, busy(r.status))), ...part("Events", log && log.events, events)],
    Settings: () => [
      el("h2", {}, "Settings"), ...names(panels), r.config ? el("pre", {class: "command"}, r.config) : "",
      r.about.folder ? el("pre", {class: "command"}, "rayfed report " + r.about.folder) : ""]};
  return [
    el("h2", {}, r.name, " ", badge(r.status)), r.note ? el("p", {class: "soft"}, r.note) : "",
    progressBar(live.round, live.rounds), facts(r),
    r.report ? el("p", {}, el("a", {href: "/report?id=" + encodeURIComponent(r.id)}, "its report")) : "",
    tabs(), ...content[view.tab]()];
}

// Several runs, a picture for each score and a line for each run.
function compared(runs) {
  const found = runs.filter(r => !r.problem && !r.curves.problem), pictures = new Map();
  for (const r of found) {
    for (const p of r.curves) {
      for (const [line, points] of Object.entries(p.lines)) {
        const title = p.name === line ? line : p.name + "/" + line;
        if (!pictures.has(title)) pictures.set(title, {unit: unitOf(p.name), scoped: p.scoped, lines: {}, abouts: {}});
        pictures.get(title).lines[r.id] = points;
      }
    }
  }
  const drawn = scoped => [...pictures].filter(([, p]) => !!p.scoped === scoped).map(([title, p]) => curves(title, p.lines, p.unit));
  const rows = found.map(r => [r.id, r.status, text(r.about.method), text(r.about.data), text(r.about.seed)]);
  const missing = runs.filter(r => !found.includes(r)).map(r => problem(r.id + ": " + (r.problem || r.curves.problem)));
  return [el("h2", {}, `${runs.length} runs`), ...missing, table(["run", "state", "method", "data", "seed"], rows, [0, 1, 2, 3]), tools(),
    el("h2", {}, "Scores"), grid(drawn(true)), el("h2", {}, "Others"), grid(drawn(false))];
}

// -- refreshing -------------------------------------------------------------------------------------------------------

async function refresh() {
  clearTimeout(timer);
  const name = decodeURIComponent(location.hash.slice(1)), mine = ++requests;
  const late = () => mine !== requests;  // another request has been sent since
  let wait = INTERVAL.busy;
  try {
    const get = url => fetch(url, {signal: AbortSignal.timeout(TIMEOUT)}), runUrl = id => "/api/run?id=" + encodeURIComponent(id);
    const several = name.startsWith(OVER) ? JSON.parse(name.slice(OVER.length)) : null;
    const asked = several ? several.map(runUrl) : name ? [runUrl(name)] : ["/api/runs"];
    if (name && !several && view.tab === "Log") asked.push("/api/log?id=" + encodeURIComponent(name));
    const answers = await Promise.all(asked.map(get));
    const answer = answers.find(a => !a.ok) || answers[0];
    if (late()) return;
    if (answer.status === 404 && name) {
      show(name, [el("h2", {}, name), el("p", {class: "problem"}, "There is no such run (any more).")]);
      wait = INTERVAL.idle;
    } else if (!answer.ok) {
      throw new Error(await answer.text());
    } else {
      const found = await Promise.all(answers.map(a => a.json())), data = found[0];
      if (late()) return;
      const nodes = () => several ? compared(found) : name ? detail(...found) : list(data);
      redraw = () => show(name, nodes(), true);
      show(name, nodes());
      if (!(several ? found : name ? [data] : data.runs).some(r => busy(r.status))) wait = INTERVAL.idle;
    }
    $("#fresh").textContent = "as of " + new Date().toLocaleTimeString();
    $("#fresh").className = "soft";
  } catch (error) {
    if (late()) return;
    $("#fresh").textContent = "no answer (" + (error.message || error) + "); trying again";
    $("#fresh").className = "late";
    wait = INTERVAL.idle / 2;
  }
  document.body.dataset.ready = "1";
  timer = setTimeout(refresh, document.hidden ? 6 * wait : wait);
}
function show(name, nodes, asked) {
  const made = waiting;
  waiting = [];
  if (!asked && name === shown && plots.some(u => u.cursor.left >= 0)) return;  // a value is being read
  const top = name === shown ? scrollY : 0, sideways = [...document.querySelectorAll(".wide")].map(w => w.scrollLeft);
  plots.forEach(u => u.destroy());
  $("#runs").replaceChildren(...nodes.filter(n => n !== ""));
  plots = made.map(make => make());
  if (name === shown) document.querySelectorAll(".wide").forEach((w, i) => { w.scrollLeft = sideways[i] || 0; });
  $("#back").hidden = !name;
  $("#filter").hidden = !!name;
  const said = name.startsWith(OVER) ? "several runs" : name;
  document.title = (said ? said + " · " : "") + "rayfed monitor";
  shown = name;
  scrollTo(0, top);
}
addEventListener("hashchange", refresh);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
for (const theme of [$("#switch"), matchMedia("(prefers-color-scheme: dark)")]) theme.addEventListener("change", () => plots.forEach(u => u.redraw(false)));
$("#filter").addEventListener("input", e => { filterText = e.target.value.trim().toLowerCase(); refresh(); });
refresh();
