"use strict";
const $ = s => document.querySelector(s), SVG = "http://www.w3.org/2000/svg";
const AGAIN = {busy: 2000, idle: 10000};
let shown = null, timer = 0, asked = 0, sought = "";
const opened = new Set();  // sweeps whose runs are shown

// Text only ever becomes text: names of runs and clients are somebody's files.
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
function num(v, unit) {
  if (v === null || v === undefined || !Number.isFinite(v)) return "–";
  if (unit === "fraction") return (100 * v).toFixed(1) + " %";
  if (unit && unit.startsWith("bytes")) return bytes(v);
  const a = Math.abs(v);
  if (Number.isInteger(v)) return v.toLocaleString("en");
  return a >= 1000 ? Math.round(v).toLocaleString("en") : a >= 100 ? v.toFixed(1) : a >= 1 ? v.toFixed(2) : a >= 0.001 ? v.toFixed(3) : v.toExponential(1);
}
function bytes(v) {
  if (v === null || v === undefined) return "–";
  for (const u of ["B", "kB", "MB", "GB", "TB"]) { if (v < 1000 || u === "TB") return (u === "B" ? Math.round(v) : v.toFixed(1)) + " " + u; v /= 1000; }
}
function span(s) {
  if (s === null || s === undefined) return "–";
  if (s < 90) return (s < 10 ? s.toFixed(1) : Math.round(s)) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  return s < 172800 ? (s / 3600).toFixed(1) + " h" : (s / 86400).toFixed(1) + " d";
}
const busy = s => s === "running" || s === "starting";
const state = s => el("span", {class: "state " + s}, s);
const problem = p => el("p", {class: "problem"}, "cannot be read: " + p);
const unit = name => name.startsWith("accuracy") ? "fraction" : name.startsWith("bytes") || name === "ray" ? "bytes" : "";

// -- pictures ---------------------------------------------------------------------------------------------------------

function ticks(low, high, many) {
  const raw = (high - low) / many || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find(k => k * power >= raw * 0.65);
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return out;
}
const W = 360, H = 210, L = 46, R = 10, T = 8, B = 26;

function frame(xs, ys, xText, yText) {
  const svg = draw("svg", {viewBox: `0 0 ${W} ${H}`, role: "img"});
  const x = v => L + (v - xs[0]) / (xs[1] - xs[0] || 1) * (W - L - R), y = v => H - B - (v - ys[0]) / (ys[1] - ys[0] || 1) * (H - T - B);
  for (const v of ticks(ys[0], ys[1], 4)) {
    svg.append(draw("line", {class: "grid", x1: L, x2: W - R, y1: y(v), y2: y(v)}));
    svg.append(draw("text", {x: L - 6, y: y(v) + 4, "text-anchor": "end"}, yText(v)));
  }
  for (const v of xText.at || ticks(xs[0], xs[1], 4).filter(v => xText(v) !== "")) svg.append(draw("text", {x: x(v), y: H - 8, "text-anchor": "middle"}, xText(v)));
  return {svg, x, y};
}
const whole = v => Number.isInteger(v) ? v.toLocaleString("en") : "";
const axis = u => v => u === "fraction" ? Math.round(v * 1000) / 10 + " %" : u === "bytes" ? bytes(v).replace(".0", "") : Math.abs(v) >= 1e5 ? v.toExponential(0) : String(Math.round(v * 1e6) / 1e6);

function curves(title, lines, u) {
  const names = Object.keys(lines).filter(n => lines[n].length);
  const all = names.flatMap(n => lines[n]);
  if (!all.length) return null;
  const xs = [Math.min(...all.map(p => p[0])), Math.max(...all.map(p => p[0]))];
  let ys = [Math.min(...all.map(p => p[1])), Math.max(...all.map(p => p[1]))];
  const pad = (ys[1] - ys[0]) * 0.05 || Math.abs(ys[1]) * 0.05 || 0.5;
  ys = [ys[0] >= 0 ? Math.max(0, ys[0] - pad) : ys[0] - pad, ys[1] + pad];
  const {svg, x, y} = frame(xs, ys, whole, axis(u));
  const colour = (n, i) => SCOPES[n] || COLOURS[i % COLOURS.length];
  names.forEach((n, i) => {
    const at = lines[n].map(p => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1));
    if (at.length === 1) svg.append(draw("circle", {cx: x(lines[n][0][0]), cy: y(lines[n][0][1]), r: 3, fill: colour(n, i)}));
    else svg.append(draw("polyline", {points: at.join(" "), fill: "none", stroke: colour(n, i), "stroke-width": 1.8, "stroke-linejoin": "round"}));
  });
  const key = el("ul", {class: "key"}, ...names.map((n, i) => {
    const line = el("span", {class: "line"}); line.style.borderColor = colour(n, i);
    return el("li", {}, line, names.length > 1 || n !== title ? n + " " : "", el("span", {class: "soft"}, num(lines[n].at(-1)[1], u)));
  }));
  const said = el("div", {class: "said", "aria-live": "off"}, "rounds " + whole(xs[0]) + " to " + whole(xs[1]));
  const still = said.textContent, cross = draw("line", {class: "cross", y1: T, y2: H - B, visibility: "hidden"});
  svg.append(cross);
  svg.addEventListener("pointermove", e => {
    const box = svg.getBoundingClientRect(), r = xs[0] + ((e.clientX - box.left) / box.width * W - L) / (W - L - R) * (xs[1] - xs[0]);
    const near = all.reduce((a, b) => Math.abs(b[0] - r) < Math.abs(a[0] - r) ? b : a)[0];
    cross.setAttribute("x1", x(near)); cross.setAttribute("x2", x(near)); cross.setAttribute("visibility", "visible");
    said.textContent = "round " + near + ": " + names.map(n => { const p = lines[n].find(q => q[0] === near); return p ? (names.length > 1 ? n + " " : "") + num(p[1], u) : ""; }).filter(Boolean).join(", ");
  });
  svg.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); said.textContent = still; });
  svg.setAttribute("aria-label", title);
  return el("figure", {}, el("figcaption", {}, title), key, svg, said);
}

function histogram(m, u) {
  const top = Math.max(...m.counts, 1), xs = [m.edges[0], m.edges.at(-1)];
  const {svg, x, y} = frame(xs, [0, top * 1.05], axis(u), whole);
  m.counts.forEach((c, i) => c && svg.append(draw("rect", {x: x(m.edges[i]) + 0.5, width: Math.max(1, x(m.edges[i + 1]) - x(m.edges[i]) - 1), y: y(c), height: y(0) - y(c), fill: COLOURS[0]})));
  const at = x(m["worst decile"]);
  svg.append(draw("line", {x1: at, x2: at, y1: T, y2: H - B, stroke: COLOURS[6], "stroke-width": 1.8}));
  svg.setAttribute("aria-label", "clients by " + m.name);
  const line = el("span", {class: "line"}); line.style.borderColor = COLOURS[6];
  return el("figure", {}, el("figcaption", {}, "Clients by " + m.name), el("ul", {class: "key"}, el("li", {}, line, "worst tenth ", el("span", {class: "soft"}, num(m["worst decile"], u)))), svg, el("div", {class: "said"}, "mean " + num(m.mean, u) + ", median " + num(m.median, u)));
}

function stack(c) {
  const most = Math.max(...c.rounds.map((_, t) => c.sizes.reduce((s, row) => s + row[t], 0))), n = c.rounds.length;
  const label = t => c.rounds[t] === undefined ? "" : String(c.rounds[t]);
  label.at = [...new Set([0, Math.floor((n - 1) / 2), n - 1])];
  const {svg, x, y} = frame([-0.5, n - 0.5], [0, most], label, whole);
  const wide = (W - L - R) / n;
  c.rounds.forEach((_, t) => {
    let sum = 0;
    c.sizes.forEach((row, k) => { if (row[t]) svg.append(draw("rect", {x: x(t) - wide / 2 + 0.4, width: Math.max(1, wide - 0.8), y: y(sum + row[t]), height: y(sum) - y(sum + row[t]), fill: COLOURS[k % COLOURS.length]})); sum += row[t]; });
  });
  svg.setAttribute("aria-label", "clients per cluster over rounds");
  const key = el("ul", {class: "key"}, ...c.names.map((k, i) => { const b = el("span", {class: "block"}); b.style.background = COLOURS[i % COLOURS.length]; return el("li", {}, b, k + " ", el("span", {class: "soft"}, num(c.sizes[i].at(-1)))); }));
  return el("figure", {}, el("figcaption", {}, "Clients per cluster"), key, svg, el("div", {class: "said"}, "last evaluated round: " + c.moved.at(-1) + " clients changed cluster"));
}

function spark(points) {
  const svg = draw("svg", {viewBox: "0 0 120 34", "aria-hidden": "true", preserveAspectRatio: "none"});
  if (points.length < 2) return svg;
  const v = points.map(p => p[1]), low = Math.min(...v), high = Math.max(...v), a = points[0][0], b = points.at(-1)[0];
  svg.append(draw("polyline", {points: points.map(p => (2 + (p[0] - a) / (b - a) * 116).toFixed(1) + "," + (31 - (p[1] - low) / (high - low || 1) * 28).toFixed(1)).join(" "), fill: "none", stroke: COLOURS[0], "stroke-width": 1.6}));
  return svg;
}

// -- the list ---------------------------------------------------------------------------------------------------------

function row(r) {
  const bar = el("i"); bar.style.width = Math.min(100, 100 * (r.round || 0) / (r.rounds || 1)) + "%";
  const left = busy(r.status) && r.eta_s != null ? span(r.eta_s) + " left" : r.seconds != null ? "in " + span(r.seconds) : r.note || "";
  return el("li", {}, el("a", {class: "run", href: "#" + encodeURIComponent(r.id)},
    el("div", {}, el("b", {}, r.group ? r.id.slice(r.id.indexOf("/") + 1) : r.name), el("div", {class: "soft"}, [r.method, r.seed != null ? "seed " + r.seed : "", (r.started || "").replace("T", " ")].filter(Boolean).join(" · "))),
    el("div", {class: "value"}, r.metric ? el("b", {}, num(r.value, unit(r.metric))) : "", el("div", {class: "soft"}, r.metric || "")),
    el("div", {}, state(r.status), el("div", {class: "soft"}, r.rounds != null ? `${num(r.round)} of ${num(r.rounds)}` + (left && left.length < 16 ? ", " + left : "") : r.note || ""), el("div", {class: "bar"}, bar)),
    spark(r.spark || [])));
}
function swept(s, runs) {
  const bar = el("i"), many = s.trials; bar.style.width = Math.min(100, 100 * (s.round || 0) / (s.rounds || 1)) + "%";
  const box = el("details", {class: "sweep", open: sought || opened.has(s.id) ? "" : null}, el("summary", {class: "run"},
    el("div", {}, el("b", {}, s.name), el("div", {class: "soft"}, ["sweep of " + s.method, (s.started || "").replace("T", " ")].join(" · "))),
    el("div", {class: "value"}, s.best != null ? el("b", {}, num(s.best, unit(s.metric))) : "", el("div", {class: "soft"}, "best " + s.metric)),
    el("div", {}, state(s.status), el("div", {class: "soft"}, `${num(many.complete)} of ${num(many.planned)} trials`), el("div", {class: "bar"}, bar)),
    el("div", {class: "soft"}, runs.length + (runs.length === 1 ? " run" : " runs"))),
    el("ul", {class: "list"}, ...runs.map(row)));
  box.addEventListener("toggle", () => { if (!sought) opened[box.open ? "add" : "delete"](s.id); });
  return box;
}
function list(data) {
  const within = r => (data.sweeps || []).find(s => s.id === "." || r.id.startsWith(s.id + "/"));
  const found = data.runs.filter(r => !sought || [r.id, r.method, r.status].join(" ").toLowerCase().includes(sought));
  const out = [];
  const section = (title, runs) => {
    if (!runs.length) return;
    out.push(el("h2", {}, `${title} (${runs.length})`));
    const groups = new Map();
    for (const r of runs) { const g = within(r) || (r.group ? r.id.split("/")[0] : ""); if (!groups.has(g)) groups.set(g, []); groups.get(g).push(r); }
    for (const [g, rs] of groups) {
      if (g.trials) { out.push(swept(g, rs)); continue; }
      if (g) out.push(el("h3", {}, g));
      out.push(el("ul", {class: "list"}, ...rs.map(row)));
    }
  };
  const live = r => busy((within(r) || r).status);
  section("Running", found.filter(live));
  section("Ended", found.filter(r => !live(r)));
  if (!out.length) out.push(el("p", {class: "soft"}, data.runs.length ? "No run matches." : "No runs here yet; this page looks again by itself."));
  return out;
}

// -- a run ------------------------------------------------------------------------------------------------------------

function table(head, body, texts) {
  const kind = i => texts.includes(i) ? "text" : null;
  return el("div", {class: "wide"}, el("table", {}, el("thead", {}, el("tr", {}, ...head.map((h, i) => el("th", {class: kind(i)}, h)))),
    el("tbody", {}, ...body.map(line => el("tr", {}, ...line.map((c, i) => el("td", {class: kind(i)}, c)))))));
}
function part(title, value, make) {
  if (value === null || value === undefined) return [];
  const made = value.problem ? [problem(value.problem)] : make(value);
  return made.length ? [el("h2", {}, title), ...made] : [];
}
const text = v => v === null || v === undefined ? "–" : typeof v === "number" ? num(v) : String(v);

function detail(r) {
  if (r.problem) return [el("h2", {}, r.name), problem(r.problem)];
  const live = r.live || {}, bar = el("i"); bar.style.width = Math.min(100, 100 * (live.round || 0) / (live.rounds || 1)) + "%";
  const facts = [["round", `${text(live.round)} of ${text(live.rounds)}`], ["clients per second", busy(r.status) ? text(live.clients_per_s) : null], ["sent", live.bytes != null ? bytes(live.bytes) : null], ["left", busy(r.status) ? span(live.eta_s) : null]];
  const out = [el("h2", {}, r.name, " ", state(r.status)), r.note ? el("p", {class: "soft"}, r.note) : "", el("div", {class: "bar"}, bar),
    el("ul", {class: "facts"}, ...facts.filter(f => f[1] !== null).map(f => el("li", {}, el("span", {class: "soft"}, f[0] + " "), el("b", {}, f[1]))),
      ...(r.about.problem ? [problem(r.about.problem)] : Object.entries(r.about).filter(f => f[0] !== "folder").map(f => el("li", {}, el("span", {class: "soft"}, f[0] + " "), el("b", {}, f[0] === "wall time" ? span(f[1]) : String(f[1]))))))];
  const panel = p => curves(p.name, p.lines, unit(p.name));
  const grid = made => el("div", {class: "grids"}, ...made);
  const told = r.curves.problem ? [] : r.curves, main = told.filter(p => p.scoped), found = told.filter(p => p.name.startsWith("clusters/"));
  const other = told.filter(p => !p.scoped && !found.includes(p));
  out.push(...part("Scores", r.curves, () => main.length ? [grid(main.map(panel))] : [el("p", {class: "soft"}, "No round has been evaluated yet.")]));
  out.push(...part("Clusters", r.clusters, c => [grid([stack(c), curves("Clients that changed cluster", {moved: c.rounds.map((t, i) => [t, c.moved[i]]).slice(1)}, ""),
    ...found.map(panel)].filter(Boolean))]));
  out.push(...part("Clients", r.spread, s => [
    el("p", {class: "soft"}, `Round ${s.round}: ${s.clients} clients that take part` + (s.unseen ? `, ${s.unseen} held out` : "")),
    grid(s.measures.flatMap(m => [histogram(m, unit(m.name)), curves(m.name + " of the worst tenth", {"worst tenth": m.worst}, unit(m.name))]).filter(Boolean)),
    el("h3", {}, "Worst by " + s.measures[0].name), table(s.columns, s.worst.map(line => line.map((c, i) => num2(c, s.columns[i]))), [0])]));
  out.push(...part("Actors", r.actors, a => [
    el("p", {class: a.restarts ? "problem" : "soft"}, `${a.restarts} replaced since the start` + (a.host ? `; server on ${a.host}` : "") + (a.here ? "" : ", another machine than this page's: what lives there cannot be looked up")),
    table(["", "state", "pid", "memory", "device", "threads", "node"], a.processes.map(p => [p.what, p.replaced ? `replaced ${p.replaced} ×` : p.alive === undefined ? "not seen from here" : p.alive ? "alive" : busy(r.status) ? "gone" : "ended", text(p.pid && String(p.pid)), p.rss ? bytes(p.rss) : "–", text(p.device), text(p.threads), p.node ? p.node.slice(0, 8) : "–"]), [0, 1, 4, 6])]));
  if (other.length) out.push(el("h2", {}, "Cost"), grid(other.map(panel).filter(Boolean)));
  out.push(...part("Events", r.events, es => es.length ? [(() => { const t = table(["time (UTC)", "what", ""], es.map(e => [String(e.time || "").slice(0, 19).replace("T", " "), String(e.kind), said(e)]), [0, 1, 2]); t.classList.add("events"); return t; })()] : []));
  if (r.about.folder) out.push(el("pre", {class: "command"}, "rayfed report " + r.about.folder));
  return out;
}
const num2 = (v, c) => typeof v === "number" ? num(v, unit(c)) : text(v);
function said(e) {
  const left = Object.entries(e).filter(([k]) => !["time", "kind", "fence"].includes(k)).map(([k, v]) => k + ": " + (typeof v === "string" ? v : Array.isArray(v) && typeof v[0] === "object" ? v.length : JSON.stringify(v)));
  const all = left.join(" · ");
  return all.length > 300 ? all.slice(0, 299) + "…" : all;
}

// -- again and again --------------------------------------------------------------------------------------------------

async function look() {
  clearTimeout(timer);
  const name = decodeURIComponent(location.hash.slice(1)), mine = ++asked;
  let wait = AGAIN.busy;
  try {
    const answer = await fetch(name ? "/api/run?id=" + encodeURIComponent(name) : "/api/runs", {signal: AbortSignal.timeout(20000)});
    if (mine !== asked) return;
    if (answer.status === 404 && name) { show(name, [el("h2", {}, name), el("p", {class: "problem"}, "There is no such run (any more).")]); wait = AGAIN.idle; }
    else if (!answer.ok) throw new Error(await answer.text());
    else {
      const data = await answer.json();
      if (mine !== asked) return;
      show(name, name ? detail(data) : list(data));
      if (!(name ? busy(data.status) : data.runs.some(r => busy(r.status)))) wait = AGAIN.idle;
    }
    $("#fresh").textContent = "as of " + new Date().toLocaleTimeString(); $("#fresh").className = "soft";
  } catch (error) {
    if (mine !== asked) return;
    $("#fresh").textContent = "no answer (" + (error.message || error) + "); trying again"; $("#fresh").className = "late";
    wait = AGAIN.idle / 2;
  }
  document.body.dataset.ready = "1";
  timer = setTimeout(look, document.hidden ? 6 * wait : wait);
}
function show(name, nodes) {
  if (name === shown && $("#runs").matches(":hover") && $("svg .cross[visibility=visible]")) return;  // somebody reads a value
  const at = name === shown ? scrollY : 0, side = [...document.querySelectorAll(".wide")].map(w => w.scrollLeft);
  $("#runs").replaceChildren(...nodes.filter(n => n !== ""));
  if (name === shown) document.querySelectorAll(".wide").forEach((w, i) => { w.scrollLeft = side[i] || 0; });
  $("#back").hidden = !name; $("#seek").hidden = !!name;
  document.title = (name ? name + " · " : "") + "rayfed monitor";
  shown = name; scrollTo(0, at);
}
addEventListener("hashchange", look);
document.addEventListener("visibilitychange", () => document.hidden || look());
$("#seek").addEventListener("input", e => { sought = e.target.value.trim().toLowerCase(); look(); });
look();
