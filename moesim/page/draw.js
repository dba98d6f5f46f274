"use strict";
// Turns the records of charts (moesim/page/charts.py) into plotly traces, and into CSV.

const KINDS = {f64: Float64Array, i32: Int32Array};
// colors of shares and counts from least to most, told apart by all: Cividis
const SCALE = [[0, "#00224E"], [0.25, "#3E4C6B"], [0.5, "#7C7B78"], [0.75, "#B7A86D"], [1, "#FEE838"]];
const LINKS = ["#B9BEC6", "#56B4E9", "#0072B2", "#E69F00", "#D55E00"];

// Arrays travel in base64; see charts.plain.
function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  if (value === null || typeof value !== "object") return value;
  const names = Object.keys(value);
  if (names.length === 1 && names[0] in KINDS && typeof value[names[0]] === "string") {
    return new KINDS[names[0]](bytesOf(value[names[0]]).buffer);
  }
  for (const name of names) value[name] = unpacked(value[name]);
  return value;
}

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en-US");
  if (size >= 1000) return value.toLocaleString("en-US", {maximumFractionDigits: 0});
  if (size < 1e-12) return "0";
  if (size < 1e-4) return value.toExponential(3);
  return String(Number(value.toPrecision(4)));
}

// 4292710 as 4.293M
function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= 10 * unit || (size >= unit && unit > 1e3)) {
      return Number((value / unit).toPrecision(4)) + letter;
    }
  }
  return number(value);
}

// plotly reads a few tags in texts; ours are texts
function inert(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function lines(text, most) {
  const found = [];
  for (const part of String(text).split("\n")) {
    let line = "";
    for (const word of part.split(" ")) {
      if (line && (line + " " + word).length > most) { found.push(line); line = word; }
      else line = line ? line + " " + word : word;
    }
    found.push(line);
  }
  return found.map(inert).join("<br>");
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const dark = document.documentElement.dataset.theme === "dark";
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    dark, paper: read("--paper"), ink: read("--ink"), soft: read("--soft"), line: read("--line"),
    color: (name) => DATA.palette[name][dark ? 1 : 0],
  };
}

function axis(record, look) {
  const found = {
    title: {text: lines(record.label, 60), standoff: 10, font: {size: 13, color: look.soft}},
    gridcolor: look.line, linecolor: look.line, zerolinecolor: look.line, automargin: true,
    tickfont: {size: 12, color: look.soft}, fixedrange: true,
  };
  if (record.names.length) {
    found.tickmode = "array";
    found.tickvals = record.names.map((_, i) => i);
    found.ticktext = record.names.map(inert);
  } else if (record.log) {
    Object.assign(found, {type: "log", dtick: "D2", tickformat: "~s"});
  } else {
    Object.assign(found, {exponentformat: "SI", separatethousands: true, nticks: 7});
  }
  return found;
}

function layout(look, more) {
  return Object.assign({
    paper_bgcolor: look.paper, plot_bgcolor: look.paper, hovermode: "closest", dragmode: false,
    font: {family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 13, color: look.ink},
    margin: {l: 56, r: 16, t: 12, b: 48},
    hoverlabel: {align: "left", bgcolor: look.paper, bordercolor: look.soft,
      font: {color: look.ink, size: 13}},
    showlegend: false,
  }, more);
}

function thinned(indices, most) {
  if (indices.length <= most) return indices;
  const found = [];
  for (let i = 0; i < most; i++) {
    found.push(indices[Math.round((i * (indices.length - 1)) / (most - 1))]);
  }
  return [...new Set(found)];
}

const pick = (values, indices) => indices.map((i) => values[i]);

// Indices of the points of a series that filters and the toggle leave.
function left(series, view) {
  const every = Array.from(series.x, (_, i) => i);
  if (series.cloud && !view.dominated && series.rows.length) return [];
  if (!series.rows.length || !view.passes) return every;
  return every.filter((i) => view.passes(series.rows[i]));
}

const draw = {
  xy(chart, look, view) {
    const traces = [];
    if (chart.equal) {
      const ends = [Infinity, -Infinity];
      for (const s of chart.series) {
        for (const value of [...s.x, ...s.y]) {
          ends[0] = Math.min(ends[0], value);
          ends[1] = Math.max(ends[1], value);
        }
      }
      traces.push({x: ends, y: ends, mode: "lines", meta: "equal", hoverinfo: "skip",
        line: {color: look.soft, dash: "dot", width: 1.5}});
    }
    view.drawn = {};
    for (const s of chart.series) {
      const kept = left(s, view);
      const shown = s.cloud ? thinned(kept, chart.most) : kept;
      view.drawn[s.name] = [shown.length, kept.length, s.x.length];
      const color = look.color(s.color);
      const text = s.text.length ? shown.map((i) => lines(s.text[i], 60))
        : s.rows.length && view.about ? shown.map((i) => view.about(s.rows[i])) : null;
      const trace = {
        type: "scatter", name: inert(s.name), meta: s.name, x: pick(s.x, shown), y: pick(s.y, shown),
        mode: s.mode === "markers" ? "markers" : "lines",
        text, hovertemplate: text ? "%{text}<extra></extra>" : undefined,
        customdata: s.rows.length ? pick(s.rows, shown) : undefined,
        marker: {color, size: s.size, symbol: s.symbol, opacity: s.cloud ? 0.45 : 1,
          line: s.cloud ? {width: 0} : {width: 1.2, color: look.paper}},
        line: {color, width: 2, shape: s.mode === "steps" ? "hv" : "linear"},
      };
      for (const along of ["x", "y"]) {
        const low = s[along + "_low"], high = s[along + "_high"];
        if (low) {
          trace["error_" + along] = {
            type: "data", symmetric: false, thickness: 1.2, width: 0,
            color: color + "88",
            array: shown.map((i) => high[i] - s[along][i]),
            arrayminus: shown.map((i) => s[along][i] - low[i]),
          };
        }
      }
      traces.push(trace);
    }
    // a finger scrolls the page; a mouse may draw a box to zoom into a large chart
    const zooms = Boolean(view.height) && matchMedia("(pointer: fine)").matches;
    const free = {fixedrange: !zooms};
    return {data: traces, layout: layout(look, {height: view.height || 360,
      dragmode: zooms ? "zoom" : false,
      xaxis: Object.assign(axis(chart.x, look), free),
      yaxis: Object.assign(axis(chart.y, look), free)})};
  },

  bars(chart, look, view) {
    const least = view.wide < 700 ? 17 : 7;
    const rows = chart.rows.map(inert);
    const data = Object.entries(chart.parts).map(([name, values]) => {
      const color = look.color(chart.colors[name]);
      const pale = ["amber", "sky", "muted"].includes(chart.colors[name]) || look.dark;
      return {
        type: "bar", orientation: "h", name: inert(name), meta: name, y: rows, x: Array.from(values),
        marker: {color, line: {color: look.paper, width: chart.stacked ? 1 : 0}},
        text: chart.stacked ? Array.from(values, (v) => (v >= least ? v.toFixed(0) + " %" : "")) : null,
        textposition: "inside", insidetextanchor: "middle", textangle: 0,
        insidetextfont: {color: pale ? "#111418" : "#ffffff", size: 12}, constraintext: "none",
        hovertemplate: "%{y}<br>" + inert(name) + ": %{x:.3~f}<extra></extra>",
      };
    });
    const across = chart.stacked ? 1 : data.length;
    const x = axis(chart.x, look);
    if (chart.stacked) x.range = [0, 100];
    return {data, layout: layout(look, {
      height: 64 + rows.length * (chart.stacked ? 36 : 12 + 13 * across),
      barmode: chart.stacked ? "stack" : "group", bargap: 0.28, xaxis: x,
      yaxis: {automargin: true, autorange: "reversed", fixedrange: true, tickfont: {size: 12.5, color: look.ink},
        ticksuffix: "  "},
    })};
  },

  heat(chart, look) {
    const z = chart.z.map((row) => Array.from(row));
    const few = z.length <= 32;
    const y = Object.assign(axis(chart.y, look), {autorange: "reversed"});
    const x = axis(chart.x, look);
    if (few) Object.assign(y, {dtick: z.length > 16 ? 4 : 1});
    if (z[0].length <= 16) x.dtick = 1;
    return {
      data: [{
        type: "heatmap", z, colorscale: SCALE, zmin: 0, zmax: Math.max(1e-9, ...z.flat()),
        xgap: z[0].length > 32 ? 0 : 1, ygap: z.length > 32 ? 0 : 1,
        text: chart.text.length ? chart.text.map((row) => row.map(inert)) : undefined,
        hovertemplate: inert(chart.y.label) + " %{y}, " + inert(chart.x.label) + " %{x}<br>"
          + (chart.text.length ? "%{text}: " : "") + "%{z:,.4~g} " + inert(chart.label)
          + "<extra></extra>",
        colorbar: {title: {text: inert(chart.label), side: "right", font: {size: 13}},
          thickness: 12, outlinewidth: 0, tickfont: {size: 12, color: look.soft}, nticks: 5},
      }],
      layout: layout(look, {height: 340, xaxis: x, yaxis: y}),
    };
  },

  map(chart, look) {
    const data = [];
    chart.edges.forEach((edge, bin) => {
      const low = bin ? chart.edges[bin - 1] : -1;
      const own = chart.links.filter((link) => link[4] > low && link[4] <= edge);
      if (!own.length) return;
      const x = [], y = [];
      for (const [x0, y0, x1, y1] of own) { x.push(x0, x1, null); y.push(y0, y1, null); }
      data.push({type: "scatter", mode: "lines", x, y, hoverinfo: "skip",
        meta: (bin ? number(chart.edges[bin - 1]) + " to " : "up to ") + number(edge) + " %",
        line: {color: LINKS[bin], width: 1.5 + 0.6 * bin}});
    });
    const names = Object.keys(chart.nodes), nodes = Object.values(chart.nodes);
    const some = (test) => names.map((_, i) => i).filter((i) => test(nodes[i][2]));
    const devices = some((value) => value !== null), others = some((value) => value === null);
    const values = devices.map((i) => nodes[i][2]);
    const few = devices.length <= 16;
    data.push({type: "scatter", mode: few ? "markers+text" : "markers",
      x: devices.map((i) => nodes[i][0]), y: devices.map((i) => nodes[i][1]),
      text: devices.map((i) => names[i].replace("device ", "")), textposition: "bottom center",
      textfont: {size: 12, color: look.soft},
      hovertext: devices.map((i) => inert(names[i]) + "<br>" + number(nodes[i][2]) + " "
        + inert(chart.label) + "<br>" + lines(chart.about[names[i]], 48)), hoverinfo: "text",
      marker: {size: few ? 22 : devices.length <= 128 ? 13 : 8, color: values, colorscale: SCALE,
        cmin: 0, cmax: Math.max(1, ...values) * 1.0001, line: {color: look.soft, width: 1},
        colorbar: {title: {text: inert(chart.label), side: "right", font: {size: 13}},
          thickness: 12, outlinewidth: 0, tickfont: {size: 12, color: look.soft}, nticks: 5}}});
    data.push({type: "scatter", mode: "markers",
      x: others.map((i) => nodes[i][0]), y: others.map((i) => nodes[i][1]),
      hovertext: others.map((i) => inert(names[i])), hoverinfo: "text",
      marker: {size: 15, symbol: "square", color: look.paper, line: {color: look.soft, width: 2}}});
    const off = {visible: false, fixedrange: true};
    return {data, layout: layout(look, {height: few ? 340 : 480, xaxis: off,
      yaxis: Object.assign({}, off), margin: {l: 16, r: 16, t: 12, b: 28}})};
  },

  parallel(chart, look, view) {
    const count = chart.rows.length, axes = chart.axes.length;
    const heights = chart.axes.map((one, a) => {
      const values = Array.from(chart.values[a]);
      if (one.names.length) {
        const last = Math.max(one.names.length - 1, 1);
        return values.map((v) => v / last);
      }
      const scaled = one.log ? values.map(Math.log) : values;
      const low = Math.min(...scaled), span = Math.max(...scaled) - low || 1;
      return scaled.map((v) => (v - low) / span);
    });
    const byColor = new Map();
    let shown = 0;
    for (let i = 0; i < count; i++) {
      if (view.passes && !view.passes(chart.rows[i])) continue;
      shown++;
      const name = chart.colors[i];
      if (!byColor.has(name)) byColor.set(name, {x: [], y: [], text: []});
      const own = byColor.get(name);
      const text = view.about ? view.about(chart.rows[i]) : "";
      for (let a = 0; a < axes; a++) {
        own.x.push(a); own.y.push(heights[a][i]); own.text.push(text);
      }
      own.x.push(null); own.y.push(null); own.text.push("");
    }
    view.drawn = {designs: [shown, shown, count]};
    const plainly = (name) => ["sky", "muted"].includes(name);
    const data = [...byColor].map(([name, own]) => ({
      type: "scatter", mode: "lines+markers", x: own.x, y: own.y, text: own.text,
      hovertemplate: "%{text}<extra></extra>", name: inert(chart.names[name]), meta: chart.names[name],
      opacity: plainly(name) ? 0.55 : 1,
      line: {color: look.color(name), width: plainly(name) ? 1.2 : 3},
      marker: {color: look.color(name), size: plainly(name) ? 4 : 7},
    }));
    const annotations = [], shapes = [];
    chart.axes.forEach((one, a) => {
      shapes.push({type: "line", x0: a, x1: a, y0: 0, y1: 1, layer: "below",
        line: {color: look.line, width: 1.5}});
      annotations.push({x: a, y: 1.06, yanchor: "bottom", showarrow: false, align: "center",
        text: lines(one.label, 16), font: {size: 12.5, color: look.ink}});
      const values = Array.from(chart.values[a]);
      const last = Math.max(one.names.length - 1, 1);
      const ticks = one.names.length ? one.names.map((name, i) => [i / last, name])
        : [[0, short(Math.min(...values))], [1, short(Math.max(...values))]];
      for (const [y, text] of ticks) {
        annotations.push({x: a, y, xanchor: "left", showarrow: false,
          xshift: 7, yshift: 9, text: inert(text),
          bgcolor: look.paper, borderpad: 1, opacity: 0.9,
          font: {size: 11.5, color: look.soft}});
      }
    });
    const off = {visible: false, fixedrange: true};
    return {data, width: axes * 112, layout: layout(look, {
      height: 460, annotations, shapes, margin: {l: 52, r: 84, t: 84, b: 16},
      xaxis: Object.assign({range: [-0.12, axes - 0.88]}, off),
      yaxis: Object.assign({range: [-0.05, 1.08]}, off),
    })};
  },
};

// What a legend shows beside a name: a point, a bar or a line, as an SVG element.
function sample(trace) {
  const space = "http://www.w3.org/2000/svg";
  const made = (tag, attributes) => {
    const found = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    return found;
  };
  const icon = made("svg", {width: 18, height: 14, viewBox: "0 0 18 14", "aria-hidden": "true"});
  if (trace.type === "bar") {
    icon.append(made("rect", {x: 3, y: 1, width: 12, height: 12, rx: 2, fill: trace.marker.color}));
    return icon;
  }
  if (trace.mode.startsWith("lines")) {
    icon.append(made("line", {x1: 0, x2: 18, y1: 7, y2: 7, stroke: trace.line.color,
      "stroke-width": Math.max(trace.line.width, 2),
      "stroke-dasharray": trace.line.dash === "dot" ? "2 3" : "none"}));
    return icon;
  }
  const shapes = {
    square: "M4 2h10v10H4z", diamond: "M9 1l6 6-6 6-6-6z",
    star: "M9 0l2 4.6 5 .5-3.8 3.3 1.1 4.9L9 10.7l-4.3 2.6 1.1-4.9L2 5.1l5-.5z",
    x: "M4 4l2-2 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z", "triangle-up": "M9 1l6 11H3z",
  };
  const {color, size, symbol} = trace.marker;
  icon.append(symbol in shapes ? made("path", {d: shapes[symbol], fill: color})
    : made("circle", {cx: 9, cy: 7, r: Math.max(size / 2, 3), fill: color}));
  return icon;
}

// --- CSV ---

const FORMULA = ["=", "+", "-", "@", "\t", "\r", "\n", "'"];
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|^[+-]?(inf(inity)?|nan)$/i;

// A spreadsheet takes no cell for a formula: the rule of moesim.report.tables.escaped.
function cell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  let text = value === true ? "True" : value === false ? "False" : String(value);
  if (typeof value === "string" && FORMULA.includes(text[0]) && !NUMBER.test(text.trim())) {
    text = "'" + text;
  }
  return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
}

const csv = (rows) => rows.map((row) => row.map(cell).join(",") + "\n").join("");

const rowsOf = {
  xy(chart) {
    const ends = ["x_low", "x_high", "y_low", "y_high"];
    const used = ends.filter((end) => chart.series.some((s) => s[end]));
    const named = chart.series.some((s) => s.text.length);
    const trials = chart.series.some((s) => s.rows.length);
    const head = ["series", chart.x.label, chart.y.label,
      ...used.map((end) => (end[0] === "x" ? chart.x.label : chart.y.label) + ", "
        + (end.endsWith("low") ? "P10" : "P90")),
      ...(trials ? ["trial"] : []), ...(named ? ["about"] : [])];
    const rows = [head];
    for (const s of chart.series) {
      for (let i = 0; i < s.x.length; i++) {
        rows.push([s.name, s.x[i], s.y[i], ...used.map((end) => (s[end] ? s[end][i] : null)),
          ...(trials ? [s.rows.length ? DATA.trials.number.numbers[s.rows[i]] : null] : []),
          ...(named ? [s.text.length ? s.text[i].replace(/\n/g, ", ") : null] : [])]);
      }
    }
    return rows;
  },
  bars(chart) {
    const parts = Object.keys(chart.parts);
    return [["row", ...parts.map((part) => part + ": " + chart.x.label)],
      ...chart.rows.map((row, i) => [row, ...parts.map((part) => chart.parts[part][i])])];
  },
  heat(chart) {
    const rows = [[chart.y.label, chart.x.label, chart.label, ...(chart.text.length ? ["what"] : [])]];
    chart.z.forEach((line, y) => Array.from(line).forEach((value, x) => {
      rows.push([y, x, value, ...(chart.text.length ? [chart.text[y][x]] : [])]);
    }));
    return rows;
  },
  map(chart) {
    const rows = [["kind", "name", "x", "y", "x of the other end", "y of the other end", "value",
      "about"]];
    for (const [name, [x, y, value]] of Object.entries(chart.nodes)) {
      rows.push(["node: " + chart.label, name, x, y, null, null, value,
        chart.about[name] || null]);
    }
    for (const [x0, y0, x1, y1, load] of chart.links) {
      rows.push(["link: " + chart.load_label, null, x0, y0, x1, y1, load, null]);
    }
    return rows;
  },
  parallel(chart) {
    const rows = [["trial", ...chart.axes.map((one) => one.label)]];
    chart.rows.forEach((row, i) => rows.push([DATA.trials.number.numbers[row],
      ...chart.axes.map((one, a) => (one.names.length ? one.names[chart.values[a][i]]
        : chart.values[a][i]))]));
    return rows;
  },
};
