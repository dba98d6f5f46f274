"use strict";
const DATA = unpacked(JSON.parse(document.getElementById("data").textContent));
const $ = (id) => document.getElementById(id);

function element(tag, options = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") found.textContent = value;
    else if (name === "class") found.className = value;
    else if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else found.setAttribute(name, value === true ? "" : value);
  }
  found.append(...children.filter((child) => child !== null));
  return found;
}

// --- trials ---

const TRIALS = DATA.trials;
const COUNT = TRIALS.number.numbers.length;

function value(column, row) {
  const entry = TRIALS[column];
  if (entry.numbers) return Number.isNaN(entry.numbers[row]) ? null : entry.numbers[row];
  return entry.texts[entry.codes[row]];
}

const VARYING = DATA.choices.filter((name) => TRIALS[name] && (TRIALS[name].numbers
  ? new Set(TRIALS[name].numbers).size > 1 : TRIALS[name].texts.length > 1));

function about(row) {
  const found = ["trial " + number(value("number", row))];
  for (const name of DATA.objectives) {
    found.push(TRIALS[name].label + ": " + number(value(name, row)));
  }
  const choices = VARYING.filter((name) => ![null, ""].includes(value(name, row)))
    .map((name) => name.replace(/_/g, " ") + " " + number(value(name, row)));
  return lines(found.join("\n") + "\n" + choices.join(", "), 56);
}

// --- downloads ---

function download(name, rows) {
  const url = URL.createObjectURL(new Blob([csv(rows)], {type: "text/csv;charset=utf-8"}));
  const link = element("a", {href: url, download: name + ".csv"});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function csvButton(name, what, rows, text = "CSV") {
  return element("button", {type: "button", text, "data-csv": name,
    "aria-label": "Download the data of " + what + " as CSV",
    onclick: () => download(name, rows())});
}

// --- charts ---

const VIEW = {dominated: true, passes: null, about};
const PLOTS = [];
let plotly = null;

function addChart(parent, chart, wide, height) {
  const label = chart.title + ". " + chart.note;
  const plot = element("div", {class: "plot", role: "img", "aria-label": label,
    "data-chart": chart.key});
  const legend = element("ul", {class: "legend", "aria-label": "Legend; select a name to hide it"});
  const scroll = element("div", {class: "scroll"}, plot);
  const figure = element("figure", {class: wide ? "wide" : ""},
    element("figcaption", {}, csvButton(chart.key, chart.title, () => rowsOf[chart.kind](chart)),
      element("h3", {text: chart.title}), element("p", {text: chart.note})),
    legend, scroll);
  parent.append(figure);
  const view = Object.assign(Object.create(VIEW), {height});
  PLOTS.push({chart, plot, scroll, legend, view, hidden: new Set()});
}

async function drawOne(entry) {
  const {chart, plot, scroll, view} = entry;
  view.wide = plot.clientWidth;
  const made = draw[chart.kind](chart, theme(), view);
  if (made.width) {
    plot.style.minWidth = made.width + "px";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", chart.title + ", which scrolls sideways where there is little room");
  }
  for (const trace of made.data) trace.visible = !entry.hidden.has(trace.meta);
  showLegend(entry, made.data);
  await plotly.react(plot, made.data, made.layout, {
    responsive: true, displayModeBar: false, scrollZoom: false,
  });
  plot.dataset.drawn = chart.key;
}

// Names and signs of a chart; a name hides what it stands for, and shows it again.
function showLegend(entry, traces) {
  const {chart, legend, hidden} = entry;
  const named = traces.filter((trace) => trace.meta);
  const focused = [...legend.querySelectorAll("button")].indexOf(document.activeElement);
  legend.replaceChildren(...named.map((trace) => element("li", {}, element("button", {
    type: "button", "aria-pressed": String(!hidden.has(trace.meta)), onclick: () => {
      if (hidden.has(trace.meta)) hidden.delete(trace.meta);
      else hidden.add(trace.meta);
      redraw((other) => other === entry);
    }}, sample(trace), trace.meta))));
  if (chart.kind === "map") legend.prepend(element("li", {class: "what", text: chart.load_label}));
  if (focused >= 0) legend.querySelectorAll("button")[focused].focus();
  legend.hidden = named.length < 2 && chart.kind !== "map";
}

async function drawAll(which = () => true) {
  document.documentElement.dataset.drawn = "no";
  for (const entry of PLOTS.filter(which)) {
    await drawOne(entry);
    // let the reader scroll and click between two charts
    await new Promise((done) => setTimeout(done));
  }
  tellCount();
  document.documentElement.dataset.drawn = "yes";
}

const redraw = (which) => (plotly ? drawAll(which) : null);

function addCharts() {
  const heights = {front: 520, check: 460};
  for (const parent of document.querySelectorAll("[data-charts]")) {
    const charts = DATA.sections[parent.dataset.charts];
    const isWide = ({key}) => ["parallel", "importance", "topology"].includes(key);
    const columns = Math.min(3, charts.filter((chart) => !isWide(chart)).length) || 1;
    parent.style.setProperty("--columns", columns);
    for (const chart of charts) {
      const wide = isWide(chart);
      addChart(parent, chart, wide, heights[chart.key]);
    }
  }
}

// --- filters ---

function tellCount() {
  const front = PLOTS.find((entry) => entry.chart.key === "front");
  if (!front || !front.view.drawn) { $("count").textContent = "No trial fits."; return; }
  const cloud = front.view.drawn["dominated trials"];
  let passing = 0, every = 0, drawn = 0;
  for (const [shown, kept, all] of Object.values(front.view.drawn)) {
    passing += kept; every += all; drawn += shown;
  }
  if (cloud && !VIEW.dominated) { every -= cloud[2]; }
  const thin = cloud && cloud[0] < cloud[1] ? " (dominated ones evenly thinned)" : "";
  const what = VIEW.dominated ? "trials that fit" : "designs of the front";
  $("count").textContent = `${number(passing)} of ${number(every)} ${what} pass the filters; `
    + `${number(drawn)} are drawn${thin}.`
    + (matchMedia("(pointer: fine)").matches ? " Drag to zoom, double-click to go back." : "");
}

function addFilters() {
  const parent = $("filters").querySelector(".filters");
  const selects = [];
  const apply = () => {
    const set = selects.filter((select) => select.value !== "");
    const tests = set.map((select) => [select.dataset.column, select.value]);
    VIEW.passes = tests.length
      ? (row) => tests.every(([name, wanted]) => String(value(name, row)) === wanted) : null;
    $("filters").querySelector("summary").textContent =
      "Filter by choices" + (set.length ? ` (${set.length} set)` : "");
    showFront();
    redraw(({chart}) => ["front", "parallel"].includes(chart.key));
  };
  for (const name of DATA.filters) {
    const values = new Set();
    for (let row = 0; row < COUNT; row++) values.add(value(name, row));
    const ordered = [...values].filter((one) => one !== null && one !== "");
    ordered.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b))));
    const select = element("select", {"data-column": name, onchange: apply},
      element("option", {value: "", text: "any"}),
      ...ordered.map((one) => element("option", {value: String(one), text: number(one)})));
    selects.push(select);
    parent.append(element("label", {text: TRIALS[name].label}, select));
  }
  parent.append(element("button", {type: "button", id: "clear", text: "Clear filters", onclick: () => {
    for (const select of selects) select.value = "";
    apply();
  }}));
  $("filters").hidden = !DATA.filters.length;
  $("dominated").addEventListener("change", (event) => {
    VIEW.dominated = event.target.checked;
    redraw(({chart}) => chart.key === "front");
  });
}

// --- tables ---

const kindOf = (text) => (text.length > 28 ? "name" : text.length < 12 ? "short" : "");

// columns: [{name, label, says}]; rows: objects; a cell may have an interval under "NAME:ends"
function table(columns, rows, {key, caption, sortable, rowClass, tall, tools = true}) {
  const numeric = new Set(columns.filter(({name}) => rows.some((row) => typeof row[name] === "number")
    && rows.every((row) => row[name] === null || row[name] === undefined
      || typeof row[name] === "number")).map(({name}) => name));
  const body = element("tbody");
  const fill = (ordered) => body.replaceChildren(...ordered.map((row) => {
    const cells = columns.map(({name}, place) => {
      const options = {text: number(row[name]), class: numeric.has(name) ? "number"
        : name === "kind" ? "kind" : kindOf(String(row[name] ?? ""))};
      const made = element(place ? "td" : "th", place ? options
        : Object.assign(options, {scope: "row"}));
      const ends = row[name + ":ends"];
      if (ends) {
        made.append(element("br"), element("span", {class: "ends",
          text: number(ends[0]) + " to " + number(ends[1])}));
      }
      return made;
    });
    return element("tr", {class: rowClass ? rowClass(row) : ""}, ...cells);
  }));
  const heads = columns.map(({name, label, says}) => {
    const head = element("th", {scope: "col", title: says || null,
      class: numeric.has(name) ? "number" : name === "kind" ? "kind" : ""});
    if (!sortable) { head.textContent = label; return head; }
    head.append(element("button", {type: "button", text: label, onclick: () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const missing = (one) => one === null || one === undefined || one === "";
      fill([...rows].sort((a, b) => {
        const [x, y] = [a[name], b[name]];
        if (missing(x) || missing(y)) return missing(x) - missing(y);
        const order = numeric.has(name) ? x - y
          : String(x).localeCompare(String(y), "en", {numeric: true});
        return up ? order : -order;
      }));
    }}));
    return head;
  });
  fill(rows);
  const made = element("table", {}, element("caption", {text: caption}),
    element("thead", {}, element("tr", {}, ...heads)), body);
  const scroll = element("div", {class: tall ? "scroll tall" : "scroll", tabindex: "0",
    role: "region", "aria-label": caption}, made);
  const flat = () => [columns.map(({label}) => label),
    ...rows.map((row) => columns.map(({name}) => row[name]))];
  return element("div", {}, scroll, tools ? element("div", {class: "tabletools"},
    csvButton(key, caption, flat)) : null);
}

function meanings(columns) {
  const told = columns.filter(({says}) => says);
  return element("dl", {class: "says-list"}, ...told.map(({label, says}) => element("div", {},
    element("dt", {text: label}), element("dd", {text: says}))));
}

const namedColumns = (row) => Object.keys(row).map((name) => ({name, label: name.replace(/_/g, " ")}));

const FRONT_ROWS = new Map(Array.from(TRIALS.number.numbers, (one, row) => [one, row]));

function showFront() {
  const {columns, rows} = DATA.front;
  const kept = rows.filter((row) => !VIEW.passes || VIEW.passes(FRONT_ROWS.get(row.number)));
  if (!rows.length) {
    $("front-table").replaceChildren(element("p", {class: "note", text: "No trial fits."}));
    return;
  }
  $("front-table").replaceChildren(
    table(columns, kept, {key: "designs", sortable: true, tall: true,
      rowClass: (row) => row.role,
      caption: `${number(kept.length)} of ${number(rows.length)} designs; below a value its P10 to P90`}),
    meanings(columns));
}

function showStragglers() {
  const rows = DATA.stragglers;
  const parent = $("stragglers");
  if (!rows.length) {
    $("stragglers-title").remove();
    if (!DATA.cards.length) parent.append(element("p", {class: "note", text: "No trial fits."}));
    return;
  }
  const says = {
    "experts done (us)": "When the device's experts are done, after the layer began.",
    "behind the mean (us)": "How much later than the mean of all devices that is.",
    "rows over the mean": "Tokens that its experts compute over the mean of all devices.",
    "experts take (us)": "Time of its expert phase alone.",
    "tokens late by (us)": "How much longer than the mean its experts waited for tokens.",
    "busiest link (% of the layer)": "Share of the layer's time in which its busiest link moves bytes.",
    "why": "experts: its expert phase is longer than the mean and explains at least half of its "
      + "delay; link: its tokens came late.",
  };
  const columns = Object.keys(rows[0]).map((name) => ({name, label: name, says: says[name]}));
  parent.append(table(columns, rows, {key: "stragglers", sortable: true,
    caption: "The devices whose experts are done last, the latest first"}), meanings(columns));
}

// --- cards ---

function badge({text, tone, says}) {
  return element("li", {}, element("details", {class: "badge " + tone},
    element("summary", {text}), element("p", {text: says})));
}

function card(one) {
  const facts = one.facts.map((fact) => element("div", {class: fact.objective ? "objective" : ""},
    element("dt", {text: fact.label, title: fact.says}),
    element("dd", {}, element("span", {class: "value", text: number(fact.value)}), " ",
      element("span", {class: "unit", text: fact.unit}),
      fact.ends ? element("span", {class: "ends",
        text: "P10 to P90: " + number(fact.ends[0]) + " to " + number(fact.ends[1])}) : null)));
  const differs = one.differs.length ? element("p", {class: "differs",
    text: "Unlike the winner: " + one.differs.map(({label, here, there}) =>
      `${label} ${here} instead of ${there}`).join(", ") + "."}) : null;
  return element("article", {class: "card " + one.role, "aria-label": one.heading},
    element("h3", {text: one.heading + ", trial " + number(one.trial)}),
    element("p", {class: "name", text: one.name}), element("p", {class: "says", text: one.says}),
    element("dl", {class: "facts"}, ...facts), differs,
    element("ul", {class: "badges"}, ...one.badges.map(badge)));
}

// --- comparison of two trials ---

function addComparison() {
  const [one, other] = [$("one"), $("other")];
  const roles = new Map(DATA.shown.map(({role, trial}) => [trial, role]));
  const option = (row) => {
    const trial = value("number", row), state = value("state", row);
    const role = roles.has(trial) ? ", " + roles.get(trial) : state === "fits" ? "" : ", " + state.replace("_", " ");
    return element("option", {value: String(row), text: "trial " + number(trial) + role});
  };
  const first = DATA.shown.map(({trial}) => FRONT_ROWS.get(trial));
  const listed = new Set(first);
  for (const select of [one, other]) select.append(...first.map(option));
  const show = () => {
    if (one.value === "" || other.value === "") {
      $("difference").replaceChildren(element("p", {class: "note", text: "There are no trials."}));
      return;
    }
    const [a, b] = [Number(one.value), Number(other.value)];
    const rows = [];
    for (const name of Object.keys(TRIALS)) {
      const [x, y] = [value(name, a), value(name, b)];
      if (x === y && !$("equal").checked) continue;
      const bothNumbers = typeof x === "number" && typeof y === "number";
      const choice = DATA.choices.includes(name);
      rows.push({field: TRIALS[name].label, first: x === "" ? null : x, second: y === "" ? null : y,
        kind: choice ? "choice" : "result",
        ratio: bothNumbers && x && !choice && name !== "number" ? y / x : null});
    }
    $("difference").replaceChildren(table([{name: "field", label: "field"},
      {name: "first", label: "trial " + number(value("number", a))},
      {name: "second", label: "trial " + number(value("number", b))},
      {name: "ratio", label: "second / first"}, {name: "kind", label: "kind"}], rows,
    {key: "comparison", caption: $("equal").checked ? "All fields" : "Fields that differ"}));
  };
  // the others come when everything is drawn: there may be thousands
  const rest = [];
  for (let row = 0; row < COUNT; row++) if (!listed.has(row)) rest.push(row);
  let next = 0;
  const more = () => {
    const rows = rest.slice(next, next + 500);
    next += rows.length;
    for (const select of [one, other]) select.append(...rows.map(option));
    if (one.value !== "" && !$("difference").querySelector("table")) show();
    if (next < rest.length) setTimeout(more, 20);
  };
  for (const control of [one, other, $("equal")]) control.addEventListener("change", show);
  if (first.length) one.value = String(first[0]);
  const baseline = DATA.shown.find(({role}) => role === "baseline") || DATA.shown[1];
  if (baseline) other.value = String(FRONT_ROWS.get(baseline.trial));
  show();
  return more;
}

// --- checks and the way back ---

function showChecks() {
  const rows = DATA.checks;
  if (!rows.length) {
    $("check-note").append(element("p", {class: "note", text: "The folder holds no check.csv: "
      + "nothing was compared with a measurement."
      + (DATA.checkable ? " The command moesim check winners.csv does." : "")}));
    return;
  }
  const out = DATA.left_out.reduce((sum, row) => sum + row.rows, 0);
  $("check-note").append(element("p", {class: "note", text: `Of ${number(rows.length)} rows of `
    + `check.csv ${number(DATA.compared)} compare times; ${number(out)} are left out of the chart, `
    + "for the reasons below."}));
  $("checks").append(
    table(namedColumns(rows[0]), rows, {key: "checks", sortable: true, tall: true,
      caption: "Every comparison"}));
  if (DATA.left_out.length) {
    $("checks").append(table(namedColumns(DATA.left_out[0]), DATA.left_out, {key: "left_out",
      caption: "Rows that are left out of the chart, by source and reason"}));
  }
}

function showStates() {
  const words = {fits: "fit", over_memory: "are over memory", over_constraint:
    "are over a constraint", infeasible: "are no candidate", failed: "failed"};
  const found = Object.entries(DATA.states).filter(([, count]) => count)
    .map(([state, count]) => number(count) + " " + (words[state] || state));
  $("states").textContent = `${number(COUNT)} trials: ${found.join(", ") || "none"}. `
    + (DATA.finished ? "" : "The run did not come to its end; this page shows what it recorded. ");
  $("states").after(element("div", {class: "tabletools left"}, csvButton("trials", "all trials", () => {
    const names = Object.keys(TRIALS);
    const rows = [names];
    for (let row = 0; row < COUNT; row++) rows.push(names.map((name) => value(name, row)));
    return rows;
  }, "All trials as CSV")));
}

function showReproduced() {
  const {facts, commands, study_file: file, notes} = DATA.reproduce;
  const save = element("button", {type: "button", text: "Download study.toml", onclick: () => {
    const url = URL.createObjectURL(new Blob([file], {type: "application/toml"}));
    const link = element("a", {href: url, download: "study.toml"});
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }});
  $("reproduce").append(
    element("dl", {class: "fields"}, ...facts.map(([name, text]) => element("div", {},
      element("dt", {text: name}), element("dd", {text})))),
    ...notes.map((text) => element("p", {class: "note", text})),
    element("pre", {tabindex: "0", "aria-label": "Commands", text: commands.join("\n")}),
    element("details", {}, element("summary", {text: "study.toml, from the settings of this study"}),
      element("pre", {class: "file", tabindex: "0", "aria-label": "study.toml", text: file})),
    save);
}

// --- theme ---

const DARK = matchMedia("(prefers-color-scheme: dark)");

function remembered(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light theme" : "Dark theme";
  return redraw();
}

$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme !== "dark";
  // pages of some browsers cannot store anything when opened as files
  try { localStorage.setItem("moesim-theme", dark ? "dark" : "light"); } catch { /* not kept */ }
  setTheme(dark);
});
DARK.addEventListener("change", (event) => {
  if (!remembered("moesim-theme")) setTheme(event.matches);
});
setTheme(remembered("moesim-theme") ? remembered("moesim-theme") === "dark" : DARK.matches);

$("cards").append(...DATA.cards.map(card));
for (const text of DATA.notes) {
  $("layer-notes").append(element("p", {class: "note", text}));
}
addCharts();
addFilters();
showFront();
showStragglers();
const listOthers = addComparison();
showChecks();
showStates();
showReproduced();
loadPlotly().then((found) => {
  plotly = found;
  return drawAll();
}).finally(listOthers).catch((error) => {
  for (const {plot} of PLOTS) {
    plot.className = "plot failed";
    plot.textContent = "This browser cannot draw the chart (" + error.message + "); its data is in the CSV.";
  }
});
