"use strict";
const $ = selector => document.querySelector(selector), SVG = "http://www.w3.org/2000/svg";
const INTERVAL = {busy: 2000, idle: 10000};  // milliseconds between two requests
const TIMEOUT = 20000;
let shown = null, timer = 0, requests = 0, filterText = "";
const opened = new Set();  // ids of sweeps whose runs are shown, and names of parts that are
const chosen = new Set();  // ids of runs to be laid over one another
const view = {log: false, smooth: 0, hidden: new Set()};  // of all curves; hidden: "TITLE\nLINE"
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
function bytes(v) {
  if (v === null || v === undefined) return "–";
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (v < 1000 || unit === "TB") return (unit === "B" ? Math.round(v) : v.toFixed(1)) + " " + unit;
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

// -- pictures ---------------------------------------------------------------------------------------------------------

const WIDTH = 360, HEIGHT = 210, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 26;

function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find(k => k * power >= raw * 0.65);
  const values = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) values.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return values;
}

function logTicks(low, high) {
  const values = [], several = high / low < 1000 ? [1, 2, 5] : [1];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++) values.push(...several.map(k => k * 10 ** p));
  const inside = values.filter(v => v >= low * 0.999 && v <= high * 1.001);
  return inside.length > 1 ? inside : ticks(low, high, 4).filter(v => v > 0);
}

// An empty picture with its axes. xs, ys: [least, greatest]; xText.at: places of the labels below, else chosen; log: of the values.
function frame(xs, ys, xText, yText, log) {
  const svg = draw("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img"});
  const x = v => LEFT + (v - xs[0]) / (xs[1] - xs[0] || 1) * (WIDTH - LEFT - RIGHT);
  const scale = log ? Math.log : v => v, low = scale(ys[0]), high = scale(ys[1]);
  const y = v => HEIGHT - BOTTOM - (scale(v) - low) / (high - low || 1) * (HEIGHT - TOP - BOTTOM);
  for (const v of log ? logTicks(ys[0], ys[1]) : ticks(ys[0], ys[1], 4)) {
    svg.append(draw("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v)}));
    svg.append(draw("text", {x: LEFT - 6, y: y(v) + 4, "text-anchor": "end"}, yText(v)));
  }
  const places = xText.at || ticks(xs[0], xs[1], 4).filter(v => xText(v) !== "");
  for (const v of places) svg.append(draw("text", {x: x(v), y: HEIGHT - 8, "text-anchor": "middle"}, xText(v)));
  return {svg, x, y};
}
const integerText = v => Number.isInteger(v) ? v.toLocaleString("en") : "";
const axisText = unit => v => {
  if (unit === "fraction") return Math.round(v * 1000) / 10 + " %";
  if (unit === "bytes") return bytes(v).replace(".0", "");
  return Math.abs(v) >= 1e5 ? v.toExponential(0) : String(Math.round(v * 1e6) / 1e6);
};

// Least and greatest value of an axis, with a margin, but not below zero for values that are not.
function range(values, log) {
  const low = Math.min(...values), high = Math.max(...values);
  if (log) return [low / 1.1, high * 1.1];
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5;
  return [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
}

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
  const names = Object.keys(lines).filter(n => lines[n].length), all = names.flatMap(n => lines[n]);
  if (!all.length) return null;
  const hidden = n => view.hidden.has(title + "\n" + n), visible = names.filter(n => !hidden(n));
  const points = visible.length ? visible.flatMap(n => lines[n]) : all, log = view.log && points.every(p => p[1] > 0);
  const rounds = all.map(p => p[0]), xs = [Math.min(...rounds), Math.max(...rounds)];
  const {svg, x, y} = frame(xs, range(points.map(p => p[1]), log), integerText, axisText(unit), log);
  const colour = n => SCOPES[n] || COLOURS[names.indexOf(n) % COLOURS.length];
  const stroke = (n, opacity) => ({stroke: colour(n), fill: "none", "stroke-width": 1.8, "stroke-linejoin": "round", opacity});
  const path = found => found.map(p => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" ");
  for (const n of visible) {
    if (lines[n].length === 1) { svg.append(draw("circle", {cx: x(lines[n][0][0]), cy: y(lines[n][0][1]), r: 3, fill: colour(n)})); continue; }
    svg.append(draw("polyline", {points: path(lines[n]), ...stroke(n, view.smooth ? 0.3 : 1)}));
    if (view.smooth) svg.append(draw("polyline", {points: path(smoothed(lines[n], view.smooth)), ...stroke(n, 1)}));
  }
  const key = el("ul", {class: "key"}, ...names.map(n => {
    const line = el("span", {class: "line"});
    line.style.borderColor = colour(n);
    const label = names.length > 1 || n !== title ? n + " " : "";
    const toggle = el("button", {type: "button", class: "toggle", "aria-pressed": String(!hidden(n)), title: (abouts || {})[n]},
      line, label, el("span", {class: "soft"}, number(lines[n].at(-1)[1], unit)));
    toggle.addEventListener("click", () => { view.hidden[hidden(n) ? "delete" : "add"](title + "\n" + n); redraw(); });
    return el("li", {}, toggle);
  }));
  const reading = el("div", {class: "reading", "aria-live": "off"});
  followPointer(svg, reading, {names: visible, lines, points: all, xs, x, unit});
  svg.setAttribute("aria-label", title + (log ? ", logarithmic" : ""));
  return el("figure", {}, el("figcaption", {}, title), key, svg, reading);
}


// Shows the values of the round under the pointer, else the range of rounds.
function followPointer(svg, reading, {names, lines, points, xs, x, unit}) {
  const still = "rounds " + integerText(xs[0]) + " to " + integerText(xs[1]);
  const cross = draw("line", {class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden"});
  const values = round => names.map(n => {
    const point = lines[n].find(p => p[0] === round);
    return point ? (names.length > 1 ? n + " " : "") + number(point[1], unit) : "";
  }).filter(Boolean).join(", ");
  reading.textContent = still;
  svg.append(cross);
  svg.addEventListener("pointermove", e => {
    const box = svg.getBoundingClientRect(), place = (e.clientX - box.left) / box.width * WIDTH;
    const target = xs[0] + (place - LEFT) / (WIDTH - LEFT - RIGHT) * (xs[1] - xs[0]);
    const round = points.reduce((a, b) => Math.abs(b[0] - target) < Math.abs(a[0] - target) ? b : a)[0];
    cross.setAttribute("x1", x(round));
    cross.setAttribute("x2", x(round));
    cross.setAttribute("visibility", "visible");
    reading.textContent = "round " + round + ": " + values(round);
  });
  svg.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); reading.textContent = still; });
}

function histogram(measure, unit) {
  const {counts, edges} = measure, most = Math.max(...counts, 1);
  const {svg, x, y} = frame([edges[0], edges.at(-1)], [0, most * 1.05], axisText(unit), integerText);
  counts.forEach((count, i) => {
    const width = Math.max(1, x(edges[i + 1]) - x(edges[i]) - 1);
    if (count) svg.append(draw("rect", {x: x(edges[i]) + 0.5, width, y: y(count), height: y(0) - y(count), fill: COLOURS[0]}));
  });
  const worst = x(measure["worst decile"]);
  svg.append(draw("line", {x1: worst, x2: worst, y1: TOP, y2: HEIGHT - BOTTOM, stroke: COLOURS[6], "stroke-width": 1.8}));
  svg.setAttribute("aria-label", "clients by " + measure.name);
  const line = el("span", {class: "line"});
  line.style.borderColor = COLOURS[6];
  const key = el("li", {}, line, "worst tenth ", el("span", {class: "soft"}, number(measure["worst decile"], unit)));
  const reading = "mean " + number(measure.mean, unit) + ", median " + number(measure.median, unit);
  return el("figure", {}, el("figcaption", {}, "Clients by " + measure.name), el("ul", {class: "key"}, key), svg, el("div", {class: "reading"}, reading));
}

function stack(clusters) {
  const {rounds, names, sizes, moved} = clusters, n = rounds.length;
  const most = Math.max(...rounds.map((_, t) => sizes.reduce((sum, row) => sum + row[t], 0)));
  const label = t => rounds[t] === undefined ? "" : String(rounds[t]);
  label.at = [...new Set([0, Math.floor((n - 1) / 2), n - 1])];
  const {svg, x, y} = frame([-0.5, n - 0.5], [0, most], label, integerText);
  const step = (WIDTH - LEFT - RIGHT) / n, width = Math.max(1, step - 0.8);
  const colour = k => COLOURS[k % COLOURS.length];
  rounds.forEach((_, t) => {
    let sum = 0;
    sizes.forEach((row, k) => {
      const top = y(sum + row[t]), height = y(sum) - top;
      if (row[t]) svg.append(draw("rect", {x: x(t) - step / 2 + 0.4, width, y: top, height, fill: colour(k)}));
      sum += row[t];
    });
  });
  svg.setAttribute("aria-label", "clients per cluster over rounds");
  const key = el("ul", {class: "key"}, ...names.map((name, i) => {
    const block = el("span", {class: "block"});
    block.style.background = colour(i);
    return el("li", {}, block, name + " ", el("span", {class: "soft"}, number(sizes[i].at(-1))));
  }));
  const reading = "last evaluated round: " + moved.at(-1) + " clients changed cluster";
  return el("figure", {}, el("figcaption", {}, "Clients per cluster"), key, svg, el("div", {class: "reading"}, reading));
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
    out.push(el("p", {}, el("a", {class: "over", href: there}, `Lay  runs over one another`)));
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

function detail(r) {
  if (r.problem) return [el("h2", {}, r.name), problem(r.problem)];
  const live = r.live || {}, panels = r.curves.problem ? [] : r.curves;
  const scores = panels.filter(p => p.scoped), found = panels.filter(p => p.name.startsWith("clusters/"));
  const others = panels.filter(p => !p.scoped && !found.includes(p));
  const out = [
    el("h2", {}, r.name, " ", badge(r.status)), r.note ? el("p", {class: "soft"}, r.note) : "",
    progressBar(live.round, live.rounds), facts(r),
    r.report ? el("p", {}, el("a", {href: "/report?id=" + encodeURIComponent(r.id)}, "its report")) : "", scores.length ? tools() : ""];
  const noScores = [el("p", {class: "soft"}, "No round has been evaluated yet.")];
  out.push(...part("Scores", r.curves, () => scores.length ? [grid(scores.map(panel))] : noScores));
  out.push(...part("Clusters", r.clusters, c => clusterFigures(c, found)));
  out.push(...part("Clients", r.spread, clients));
  out.push(...part("Actors", r.actors, a => actors(a, busy(r.status))));
  if (others.length) out.push(el("h2", {}, "Cost"), grid(others.map(panel)));
  out.push(...part("Events", r.events, events));
  out.push(el("h2", {}, "Settings"), ...names(panels));
  if (r.config) out.push(folded("config.yaml", el("pre", {class: "command"}, r.config)));
  if (r.about.folder) out.push(el("pre", {class: "command"}, "rayfed report " + r.about.folder));
  return out;
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
  return [el("h2", {}, ` runs`), ...missing, table(["run", "state", "method", "data", "seed"], rows, [0, 1, 2, 3]), tools(),
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
    const answers = await Promise.all(several ? several.map(id => get(runUrl(id))) : [get(name ? runUrl(name) : "/api/runs")]);
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
      const nodes = () => several ? compared(found) : name ? detail(data) : list(data);
      redraw = () => show(name, nodes(), true);
      show(name, nodes());
      if (!(several || name ? found : data.runs).some(r => busy(r.status))) wait = INTERVAL.idle;
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
  if (!asked && name === shown && $("#runs").matches(":hover") && $("svg .cross[visibility=visible]")) return;  // a value is being read
  const top = name === shown ? scrollY : 0, sideways = [...document.querySelectorAll(".wide")].map(w => w.scrollLeft);
  $("#runs").replaceChildren(...nodes.filter(n => n !== ""));
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
$("#filter").addEventListener("input", e => { filterText = e.target.value.trim().toLowerCase(); refresh(); });
refresh();
