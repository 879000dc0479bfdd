// What moves on the page: charts from the data below, names on hover, copying, the viewer.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);

function number(value) {
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : `${+value.toPrecision(4)}`;
}

function fill(select, options) {
  options.forEach(([value, label]) => select.add(new Option(label, value)));
  select.closest("label").hidden = options.length < 2;
}

// Charts whose marks carry data-slot and data-told, with a legend that picks out one method.
class Plot {
  constructor(root, draw) {
    this.root = root;
    this.legend = root.querySelector(".legend");
    this.panels = root.querySelector(".panels");
    this.selects = Object.fromEntries([...root.querySelectorAll("select")].map((s) => [s.name, s]));
    this.redraw = () => this.show(draw(Object.fromEntries(Object.entries(this.selects).map(([k, s]) => [k, s.value]))));
    Object.values(this.selects).forEach((s) => s.addEventListener("change", this.redraw));
    this.panels.addEventListener("pointerover", (event) => this.hover(event));
    this.panels.addEventListener("pointermove", (event) => this.follow(event));
    this.panels.addEventListener("pointerleave", () => this.hover(null));
  }

  show({ charts, slots, empty }) {
    const note = Object.assign(document.createElement("p"), { textContent: empty, className: "note" });
    this.panels.replaceChildren(...(charts.length ? charts : [note]));
    this.pinned = null;
    const ordered = Object.entries(slots).sort((a, b) => a[1] - b[1]);
    this.legend.replaceChildren(...ordered.map(([label, slot]) => this.entry(label, slot)));
  }

  entry(label, slot) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const mark = svg("svg", { viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" }, keyMark(slot, 7, 7));
    button.append(mark, label);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => this.pin(slot, button));
    button.addEventListener("pointerenter", () => this.pick(slot));
    button.addEventListener("pointerleave", () => this.pick(this.pinned));
    return button;
  }

  pin(slot, button) {
    this.pinned = this.pinned === slot ? null : slot;
    for (const b of this.legend.children) b.setAttribute("aria-pressed", b === button && this.pinned !== null);
    this.pick(this.pinned);
  }

  pick(slot) {
    for (const group of this.panels.querySelectorAll("[data-slot]")) {
      group.classList.toggle("dim", slot !== null && +group.dataset.slot !== slot);
    }
  }

  hover(event) {
    const group = event?.target.closest("[data-slot]"), tip = document.getElementById("tip");
    tip.hidden = !group;
    this.pick(group ? +group.dataset.slot : this.pinned);
    if (!group) return;
    tip.textContent = group.dataset.told;
    this.follow(event);
  }

  follow(event) {
    const tip = document.getElementById("tip"), room = document.documentElement.clientWidth - tip.offsetWidth - 12;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
    tip.style.top = `${event.clientY + 16}px`;
  }
}

const slotsOf = (items) => Object.fromEntries(items.map((i) => [i.label, i.slot]));
const metricOf = (name) => DATA.metrics.find((m) => m.name === name);

function fronts({ problem, metric }) {
  const lines = DATA.lines.filter((l) => l.problem === problem && metric in l.metrics);
  if (!lines.length) return { charts: [], slots: {}, empty: "No method has a result on this problem." };
  const { label: quality, less } = metricOf(metric);
  const charts = DATA.currencies.map((currency) => {
    const points = lines.map((line) => {
      const [mean, low, high] = line.metrics[metric], cost = line.costs[currency.name];
      const range = low === null ? "" : ` [${number(low)}, ${number(high)}]`;
      const alone = currency.name === "seconds" && !line.timing;
      const told = `${line.label}\n${quality}: ${number(mean)}${range}\n${currency.label}: ${number(cost)}`;
      return { ...line, x: cost, y: mean, low, high, hollow: alone, told: told + (alone ? "\nnot for timing" : "") };
    });
    return frontChart(`${quality} against ${currency.label}, ${problem}`, { label: currency.label },
      { label: quality }, points, less);
  });
  return { charts, slots: slotsOf(lines) };
}

function curves({ problem, scan, cost, metric }) {
  const shown = DATA.curves.filter((c) => c.problem === problem && (!scan || c.scan === scan));
  const lines = shown.map((c) => ({ ...c, told: `${c.label}\n${c.scan}`,
    points: c.points.filter((p) => p[metric] != null && p[cost] > 0).map((p) => [p[cost], p[metric]]) }))
    .filter((c) => c.points.length);
  const currency = DATA.curveCosts.find((c) => c.name === cost);
  if (!lines.length) return { charts: [], slots: {}, empty: "No method kept snapshots here." };
  const quality = metricOf(metric);
  const chart = lineChart(`${quality.label} against ${currency.label}, ${problem}`,
    { label: `${currency.label} spent` }, { label: quality.label }, lines, true);
  return { charts: [chart], slots: slotsOf(lines) };
}

function calibration({ problem }) {
  const shown = DATA.calibration.filter((c) => c.problem === problem);
  const linesOf = (name) => shown.map((c) => ({ ...c, told: c.label, points: c[name] })).filter((c) => c.points.length);
  const covered = linesOf("coverage"), errors = linesOf("errors"), unit = shown.length && shown[0].unit;
  const charts = [];
  if (covered.length) {
    charts.push(lineChart(`Coverage of central intervals, ${problem}`, { label: "nominal coverage" },
      { label: "observed coverage" }, covered, false, 1));
  }
  if (errors.length) {
    const most = Math.max(...errors.flatMap((c) => c.points.map((p) => Math.min(...p))));
    charts.push(lineChart(`Error by predicted deviation, ${problem}`, { label: `predicted deviation, ${unit}` },
      { label: `error, ${unit}` }, errors, false, most));
  }
  return { charts, slots: slotsOf(covered), empty: "No method gave samples here." };
}

function start(id, draw, options) {
  const root = document.getElementById(id);
  if (!root) return;
  const plot = new Plot(root, draw);
  for (const [name, choices] of Object.entries(options)) fill(plot.selects[name], choices);
  plot.redraw();
}

const named = (list) => list.map((item) => [item.name, item.label]);
const itself = (list) => [...new Set(list)].map((item) => [item, item]);

start("fronts", fronts, { problem: itself(DATA.problems), metric: named(DATA.metrics) });
start("curves", curves, {
  problem: itself(DATA.curves.map((c) => c.problem)),
  scan: [["", "every case"], ...itself(DATA.curves.map((c) => c.scan))],
  cost: named(DATA.curveCosts),
  metric: named(DATA.metrics.filter((m) => DATA.curves.some((c) => c.points.some((p) => p[m.name] != null)))),
});
start("calibrated", calibration, { problem: itself(DATA.calibration.map((c) => c.problem)) });

const stage = document.getElementById("viewer");
if (stage) new Viewer(stage, DATA.viewer);

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre, code").textContent, label = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      const range = document.createRange(); // a page opened from a file may not be allowed to: select it instead
      range.selectNodeContents(button.parentElement.querySelector("pre, code"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "selected, press Ctrl+C";
    }
    setTimeout(() => (button.textContent = label), 2000);
  });
}
