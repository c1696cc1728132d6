"use strict";
// Every text comes from the data and enters the page by textContent (`element`, `fill`), or, in the
// chart, with its brackets escaped (`plain`), as plotly.js takes some tags in names.

// Okabe and Ito's colours, then others: on a light and on a dark ground.
const COLOURS = [
  ["#0072B2", "#3B9BDB"], ["#D55E00", "#EE7B2B"], ["#009E73", "#1DB98D"], ["#CC79A7", "#DB8FBA"],
  ["#56B4E9", "#7CC8F3"], ["#E69F00", "#EDB02B"], ["#1C1F23", "#E7E9EC"], ["#B8A600", "#F0E442"],
  ["#5B45C4", "#A08EF5"], ["#882255", "#CF6698"], ["#117733", "#55AE74"], ["#8C4A1E", "#C58A5E"],
  ["#44AA99", "#6FCBBB"], ["#2F55C8", "#86A4F7"], ["#AA4466", "#DD7F9C"], ["#66788A", "#A3B4C5"],
];
const DASHES = ["dash", "dot", "dashdot", "longdash"];
const USUAL = 8;
const AXES = {
  steps: { words: "time steps", title: "Time steps", unit: (curve) => curve.step },
  time: {
    words: "wall time",
    title: "Wall time, minutes",
    unit: (curve) => curve.seconds.map((seconds) => seconds / 60),
  },
  characters: {
    words: "characters",
    title: "Characters: time steps × lanes",
    unit: (curve, task) => curve.step.map((step) => step * (curve.lanes || task.lanes)),
  },
};
const NONE = "–";

const tasks = JSON.parse(document.getElementById("data").textContent).tasks;
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = { task: tasks[0], at: "last", sort: null, axis: "steps", figure: null, open: new Set() };
// The methods in the chart, by task.
const shown = new Map(tasks.map((task) => [task, usual(task)]));

const get = (id) => document.getElementById(id);
const whole = (number) => Math.round(number).toLocaleString("en-US");

/** An element; strings among the children become text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function fill(id, ...children) {
  get(id).replaceChildren(...children);
}

function nameOf(task) {
  return `${task.study}, ${task.name}`;
}

function usual(task) {
  const own = task.methods.filter((method) => !method.public).slice(0, USUAL);
  return new Set([...own, ...task.methods.filter((method) => method.public)]);
}

function colourOf(method) {
  if (method.public) return dark.matches ? "#8d959e" : "#858c94";
  return COLOURS[method.colour % COLOURS.length][dark.matches ? 1 : 0];
}

/** Public logs are all grey, and of our methods each has a colour, or a colour again and a dash. */
function dashOf(task, method) {
  if (!method.public) return ["solid", ...DASHES][Math.floor(method.colour / COLOURS.length)];
  const all = task.methods.filter((other) => other.public);
  return DASHES[all.indexOf(method) % DASHES.length];
}

function swatch(task, method) {
  const dash = dashOf(task, method);
  const kind = dash === "solid" ? "" : dash === "dot" ? "dot" : "dash";
  const made = element("span", { className: `swatch ${kind}` });
  made.style.borderTopColor = colourOf(method);
  made.setAttribute("aria-hidden", "true");
  return made;
}

// --- leaderboard

/** A column: its heading, what it is sorted by (null is always last), and its cell. */
function columnsOf(task) {
  const score = (method, field) => method.scores[state.at]?.[field] ?? null;
  const first = task.figures[0]?.field;
  const stepOf = (method) => score(method, first)?.step ?? null;
  const any = (value) => task.methods.some((method) => value(method) !== null);
  const number = (title, value, show, falls = false) => ({
    title, value, falls, number: true,
    cell: (method) => (value(method) === null ? [NONE] : [show(value(method), method)]),
  });
  const spread = (title, found, digits, falls, note) => ({
    title, falls, number: true,
    value: (method) => found(method)?.mean ?? null,
    cell: (method) => spreadCell(found(method), digits, note(method)),
  });
  const at = (field) => (method) => {
    const own = score(method, field)?.step;
    return field === first || own === stepOf(method) ? "" : ` at ${whole(own ?? 0)}`;
  };
  const result = (title, name) => spread(title, (method) => method.results[name], 3, false, () => "");
  const columns = [
    { title: "Method", value: (method) => method.name.toLowerCase(), name: true },
    ...task.figures.map((figure) => spread(
      capital(figure.words), (method) => score(method, figure.field), figure.digits, figure.rises,
      at(figure.field),
    )),
    result("Validation, lowest", "best_valid_loss"),
    result("Test", "test_loss"),
    {
      title: "Cosine with RTRL", number: true, falls: true,
      value: (method) => method.cosine?.value ?? null,
      cell: ({ cosine }) =>
        cosine ? [cosine.value.toFixed(3), element("small", {}, `K = ${cosine.K}`)] : [NONE],
    },
    number("Steps", stepOf, whole, true),
    number("ms a step", (method) => method.ms_per_step, (value) => value.toPrecision(3)),
    number("KiB a lane", (method) => method.kib_per_lane,
      (value) => (value < 10 ? value.toFixed(1) : whole(value))),
    { title: "Status", value: (method) => method.status, status: true,
      cell: (method) => statusCell(method.status) },
  ];
  return columns.filter((column) => !column.number || any(column.value));
}

function spreadCell(found, digits, note) {
  if (!found) return [NONE];
  const spread = found.deviation === null ? "" : ` ± ${found.deviation.toFixed(digits)}`;
  return [`${found.mean.toFixed(digits)}${spread}`, element("small", {}, `(${found.runs})${note}`)];
}

/** A status as its first word or two, and the rest. */
function partsOf(status) {
  const [, word, rest] = /^([a-z ]+)[:;]? ?(.*)$/.exec(status);
  return [word, rest];
}

function statusCell(status) {
  const [word, rest] = partsOf(status);
  return rest ? [word, element("small", {}, rest)] : [word];
}

function capital(words) {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function sorted(methods, { column, falls }) {
  const sign = falls ? -1 : 1;
  return [...methods].sort((one, other) => {
    const [a, b] = [column.value(one), column.value(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  });
}

function drawBoard() {
  const { task } = state;
  const columns = columnsOf(task);
  // Of the figures; the first of them ranks the methods at the start.
  const chosen = state.sort ?? { title: columns[Math.min(1, columns.length - 1)].title };
  const column = columns.find((one) => one.title === chosen.title) ?? columns[0];
  const falls = chosen.falls ?? Boolean(column.falls);
  const head = columns.map((one) => {
    const cell = element("th", { scope: "col", className: one.number ? "number" : "" });
    const button = element("button", { type: "button" }, one.title);
    button.addEventListener("click", () => {
      const again = one === column;
      state.sort = { title: one.title, falls: again ? !falls : Boolean(one.falls) };
      drawBoard();
      [...get("board").querySelectorAll("thead button")][columns.indexOf(one)].focus();
    });
    cell.append(button);
    if (one === column) cell.setAttribute("aria-sort", falls ? "descending" : "ascending");
    return cell;
  });
  head.push(element("th", { scope: "col" }, "Command"));
  const rows = sorted(task.methods, { column, falls }).flatMap((method) =>
    rowsOf(task, method, columns));
  fill("board",
    element("caption", { className: "unseen" }, `Leaderboard: ${nameOf(task)}`),
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function rowsOf(task, method, columns) {
  const cells = columns.map((column) => {
    if (column.name) {
      return element("th", { scope: "row" },
        element("div", { className: "name" }, swatch(task, method), element("span", {}, method.name)));
    }
    const kind = column.status ? `status ${partsOf(method.status)[0]}` : column.number ? "number" : "";
    return element("td", { className: kind }, ...column.cell(method));
  });
  const row = element("tr", { className: method.public ? "public" : "" }, ...cells);
  if (!method.command) {
    row.append(element("td", {}, NONE));
    return [row];
  }
  const hidden = element("tr", { className: "command", hidden: !state.open.has(method) },
    element("td", { colSpan: columns.length + 1 }, element("code", {}, method.command)));
  row.append(element("td", {}, element("div", { className: "actions" },
    copyButton(method), showButton(method, hidden))));
  return [row, hidden];
}

function copyButton(method) {
  const button = element("button", { type: "button", className: "copy", title: method.command }, "Copy");
  button.dataset.command = method.command;
  button.setAttribute("aria-label", `Copy the command of ${method.name}`);
  button.addEventListener("click", async () => {
    const done = await copy(method.command);
    button.textContent = done ? "Copied" : "Not copied";
    get("said").textContent = done ? "Command copied" : "The browser did not copy the command";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

function showButton(method, row) {
  const button = element("button", { type: "button", className: "show" });
  const tell = () => {
    button.textContent = row.hidden ? "Show" : "Hide";
    button.setAttribute("aria-expanded", String(!row.hidden));
    button.setAttribute("aria-label", `${button.textContent} the command of ${method.name}`);
  };
  button.addEventListener("click", () => {
    row.hidden = !row.hidden;
    if (row.hidden) state.open.delete(method);
    else state.open.add(method);
    tell();
  });
  tell();
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Where the browser keeps the clipboard from pages in files.
    const area = element("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

// --- curves

function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function faded(colour, opacity) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${red},${green},${blue},${opacity})`;
}

/** The part of a line up to an x, where it ends between two points. */
function upTo(end, x, y) {
  const count = x.findIndex((value) => value > end);
  if (count < 0) return [x, y];
  const [left, right] = [x.slice(0, count), y.slice(0, count)];
  if (count > 0) {
    const part = (end - x[count - 1]) / (x[count] - x[count - 1]);
    left.push(end);
    right.push(y[count - 1] + part * (y[count] - y[count - 1]));
  }
  return [left, right];
}

function tracesOf(task, method, field, end) {
  const { seeds, mean } = method.curves[field];
  const axis = AXES[state.axis];
  const colour = colourOf(method);
  const common = { type: "scatter", mode: "lines", name: plain(method.name), meta: method.name };
  if (!mean || axis.unit(mean, task).length === 0) return [];
  if (method.public) {
    const [x, y] = upTo(end, axis.unit(mean, task), mean.value);
    return [{
      ...common, x, y, mode: "lines+markers", marker: { color: colour, size: 5 },
      line: { color: colour, width: 2, dash: dashOf(task, method) },
    }];
  }
  const x = axis.unit(mean, task);
  const traces = [];
  if (get("single").checked && seeds.length > 1) {
    traces.push(...seeds.map((seed) => ({
      ...common, x: axis.unit(seed, task), y: seed.value, hoverinfo: "skip",
      line: { color: faded(colour, 0.4), width: 1 },
    })));
  }
  if (!get("single").checked) {
    for (const seed of seeds.filter((one) => one.step.at(-1) > mean.step.at(-1))) {
      const first = seed.step.findIndex((step) => step >= mean.step.at(-1));
      traces.push({
        ...common, x: axis.unit(seed, task).slice(first), y: seed.value.slice(first), hoverinfo: "skip",
        line: { color: colour, width: 1 },
      });
    }
  }
  if (mean.deviation.length) {
    const edge = (sign) => mean.value.map((value, i) => value + sign * mean.deviation[i]);
    traces.push({
      ...common, x: [...x, ...[...x].reverse()], y: [...edge(1), ...edge(-1).reverse()],
      fill: "toself", fillcolor: faded(colour, 0.14), line: { width: 0 }, hoverinfo: "skip",
    });
  }
  traces.push({ ...common, x, y: mean.value, line: { color: colour, width: 2.5, dash: dashOf(task, method) } });
  return traces;
}

function drawCurves() {
  const { task } = state;
  const on = task.methods.filter((method) => shown.get(task).has(method));
  const figure = task.figures.find((one) => one.field === state.figure) ?? task.figures[0];
  if (!figure) {
    Plotly.purge("plot");
    return;
  }
  const axis = AXES[state.axis];
  const ends = on.filter((method) => !method.public).flatMap((method) =>
    method.curves[figure.field].seeds.map((seed) => axis.unit(seed, task).at(-1) ?? 0));
  const end = get("whole").checked || !ends.length ? Infinity : Math.max(...ends);
  // The public logs lie under ours.
  const order = [...on].sort((one, other) => other.public - one.public);
  const traces = order.flatMap((method) => tracesOf(task, method, figure.field, end));
  const style = getComputedStyle(document.documentElement);
  const [text, muted, line, grid, card] = ["text", "muted", "line", "grid", "card"].map((name) =>
    style.getPropertyValue(`--${name}`).trim());
  const lines = (title) => ({
    title: { text: title, font: { size: 14, color: text }, standoff: 12 },
    gridcolor: grid, linecolor: line, zeroline: false, automargin: true, tickfont: { color: muted },
    ticks: "outside", tickcolor: line, ticklen: 4,
  });
  const layout = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: text },
    paper_bgcolor: card, plot_bgcolor: card, showlegend: false, hovermode: "closest",
    hoverlabel: { namelength: -1, bgcolor: card, bordercolor: line, font: { color: text } },
    margin: { l: 64, r: 24, t: 28, b: 56 },
    xaxis: { ...lines(axis.title), rangemode: "tozero", tickformat: state.axis === "time" ? "" : "~s" },
    yaxis: lines(plain(capital(figure.words))),
  };
  const config = {
    responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d"],
  };
  get("plot").setAttribute("aria-label", `${figure.words} against ${axis.words}, ${on.length} methods`);
  Plotly.react("plot", traces, layout, config);
  get("curves-note").textContent = curvesNote(task);
}

function curvesNote(task) {
  const parts = [
    "Lines are means over seeds, as far as all of them have come, and thin where single seeds go on; " +
    "bands are ± the standard deviation of a single run.",
  ];
  if (task.methods.some((method) => method.public)) {
    parts.push(state.axis === "time"
      ? "The public logs have no times."
      : "Grey lines are means over the seeds of the public logs.");
  }
  return parts.join(" ");
}

function drawMethods() {
  const { task } = state;
  const on = shown.get(task);
  fill("list", ...task.methods.map((method) => {
    const box = element("input", { type: "checkbox", checked: on.has(method), value: method.name });
    const label = element("label", { className: on.has(method) ? "" : "off" },
      box, swatch(task, method), element("span", {}, method.name));
    box.addEventListener("change", () => {
      if (box.checked) on.add(method);
      else on.delete(method);
      label.className = box.checked ? "" : "off";
      drawCurves();
    });
    return label;
  }));
}

function choose(methods) {
  shown.set(state.task, new Set(methods));
  drawMethods();
  drawCurves();
}

// --- configs

function drawConfigs() {
  const { task } = state;
  const { common, fields, rows } = task.configs;
  const alike = common.map(([field, value]) => `${field} = ${value}`).join(", ");
  get("configs-note").textContent =
    `Every method runs ${task.config} with these fields changed; ${NONE} leaves a field as it is there.` +
    (alike ? ` In all of them ${alike}.` : "");
  const head = ["Method", ...fields].map((text) => element("th", { scope: "col" }, text));
  const body = rows.map((row) => {
    const method = task.methods.find((one) => one.name === row.method);
    return element("tr", {},
      element("th", { scope: "row" }, swatch(task, method), row.method),
      ...row.values.map((value) => (value === null
        ? element("td", { className: "muted" }, NONE)
        : element("td", {}, element("code", {}, value)))));
  });
  fill("overrides", element("caption", { className: "unseen" }, `Configs: ${nameOf(task)}`),
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  fill("made-with", ...task.made_with.map((line) => element("li", {}, line)));
}

// --- the page

function options(id, pairs, chosen) {
  fill(id, ...pairs.map(([value, text]) =>
    element("option", { value, selected: value === chosen }, text)));
}

function timesNote(task) {
  return task.timed
    ? "Times are those of a run alone, the methods taking turns in one process; one that was not " +
      "timed with the others has none."
    : "Times are medians over runs on machines that did other things beside it, and compare methods " +
      "roughly.";
}

function cosineNote(task) {
  const places = new Set(task.methods.flatMap((method) => method.cosine ? [method.cosine.along] : []));
  if (!places.size) return "";
  return ` Cosine: of the gradients that the estimate of the influence gives with those of exact RTRL, ` +
    `along ${[...places].join(" or ")}, with the same K steps between pushes; truncation estimates ` +
    `no influence. See docs/fidelity.md.`;
}

/** A button for each study; a study of several tasks has a list of them too. */
function drawStudies() {
  const { task } = state;
  const studies = [...new Set(tasks.map((one) => one.study))];
  fill("studies", ...studies.map((study, number) => {
    const button = element("button", { type: "button" }, study);
    if (study === task.study) button.setAttribute("aria-current", "page");
    button.addEventListener("click", () => {
      begin(tasks.find((one) => one.study === study));
      get("studies").children[number].focus();
    });
    return button;
  }));
  const within = tasks.filter((one) => one.study === task.study);
  get("task-label").hidden = within.length === 1;
  options("task", within.map((one) => [one.name, one.name]), task.name);
}

function draw() {
  const { task } = state;
  drawStudies();
  get("title").textContent = task.study;
  get("protocol").textContent = task.protocol;
  get("times-note").textContent = timesNote(task);
  get("cosine-note").textContent = cosineNote(task);
  get("whole-label").hidden = !task.methods.some((method) => method.public);
  options("at", [["last", "each method's last step"],
    ...task.steps.map((step) => [step, `${whole(Number(step))} steps`])], state.at);
  options("figure", task.figures.map((figure) => [figure.field, figure.words]), state.figure);
  options("axis", Object.entries(AXES).map(([name, axis]) => [name, axis.words]), state.axis);
  drawBoard();
  drawMethods();
  drawCurves();
  drawConfigs();
}

function begin(task) {
  Object.assign(state, { task, at: "last", sort: null, figure: task.figures[0]?.field ?? null });
  draw();
}

function listen() {
  get("task").addEventListener("change", (event) => {
    begin(tasks.find((one) => one.study === state.task.study && one.name === event.target.value));
  });
  get("at").addEventListener("change", (event) => { state.at = event.target.value; drawBoard(); });
  for (const name of ["figure", "axis"]) {
    get(name).addEventListener("change", (event) => { state[name] = event.target.value; drawCurves(); });
  }
  for (const name of ["single", "whole"]) get(name).addEventListener("change", drawCurves);
  get("usual").addEventListener("click", () => choose(usual(state.task)));
  get("all").addEventListener("click", () => choose(state.task.methods));
  get("none").addEventListener("click", () => choose([]));
  dark.addEventListener("change", draw);
}

if (tasks.length) {
  listen();
  begin(tasks[0]);
} else {
  for (const section of document.querySelectorAll("section")) section.hidden = true;
  get("title").textContent = "No study has records yet";
  get("protocol").textContent = "kfrtrl reproduce runs one and writes them.";
}
