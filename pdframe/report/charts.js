// Charts as inline SVG. A method has a slot; its mark (shape and colour) is the symbol #k<slot> of the page.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e9) return value.toExponential(0).replace("e+", "e");
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(3)}`;
}

// A scale: data to pixels, with its ticks. Zero has no logarithm: it gets a place of its own before the first tick.
function scaleOf(values, [from, to], log) {
  const positive = log ? values.filter((v) => v > 0) : values;
  const zero = log && positive.length < values.length;
  let low = Math.min(...positive), high = Math.max(...positive);
  if (!positive.length) [low, high] = [1, 10];
  const start = zero ? from + 0.1 * (to - from) : from;
  const pad = (v) => (log ? Math.log10(v) : v);
  let [a, b] = [pad(low), pad(high)];
  const room = b - a > 1e-9 ? 0.07 * (b - a) : log ? 0.3 : Math.abs(a) * 0.02 + 0.5;
  [a, b] = [a - room, b + room];
  const place = (v) => (log && v <= 0 ? from + 0.03 * (to - from) : start + ((pad(v) - a) / (b - a)) * (to - start));
  const ticks = log ? logTicks(a, b) : linearTicks(a, b);
  return { place, ticks: zero ? [0, ...ticks] : ticks };
}

function linearTicks(a, b) {
  const raw = (b - a) / 5, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= raw);
  const ticks = [];
  for (let i = Math.ceil(a / step); i * step <= b; i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

function logTicks(a, b) {
  const steps = b - a > 2.6 ? [1] : b - a > 1.2 ? [1, 3] : b - a > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  let ticks = [];
  for (let p = Math.floor(a); p <= b; p++) for (const m of steps) ticks.push(m * 10 ** p);
  ticks = ticks.filter((t) => Math.log10(t) >= a && Math.log10(t) <= b);
  if (ticks.length < 3) return linearTicks(10 ** a, 10 ** b).filter((t) => t > 0);
  const every = Math.ceil(ticks.length / 6);
  return ticks.filter((_, i) => i % every === 0);
}

// An empty chart with axes, its units being pixels where it has room. `x` and `y`: {label, values, log}.
function axes(title, x, y, wide = { width: 560, height: 320 }) {
  const narrow = matchMedia("(max-width: 720px)").matches;
  const { width, height } = narrow ? { width: 380, height: 290 } : wide, box = { left: 52, right: width - 14, top: 16, bottom: height - 44 };
  const X = scaleOf(x.values, [box.left, box.right], x.log), Y = scaleOf(y.values, [box.bottom, box.top], false);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title, class: "chart" });
  const grid = svg("g", { class: "grid" }), text = svg("g", { class: "ticks" });
  for (const t of Y.ticks) {
    grid.append(svg("line", { x1: box.left, x2: box.right, y1: Y.place(t), y2: Y.place(t) }));
    text.append(svg("text", { x: box.left - 8, y: Y.place(t) + 4, "text-anchor": "end" }, short(t)));
  }
  for (const t of X.ticks) {
    grid.append(svg("line", { x1: X.place(t), x2: X.place(t), y1: box.bottom, y2: box.bottom + 4 }));
    text.append(svg("text", { x: X.place(t), y: box.bottom + 18, "text-anchor": "middle" }, short(t)));
  }
  grid.append(svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "base" }));
  text.append(
    svg("text", { x: (box.left + box.right) / 2, y: height - 8, "text-anchor": "middle", class: "axis" }, x.label),
    svg("text", { x: 14, y: (box.top + box.bottom) / 2, "text-anchor": "middle", class: "axis",
      transform: `rotate(-90 14 ${(box.top + box.bottom) / 2})` }, y.label),
  );
  const plot = svg("g");
  root.append(grid, text, plot);
  return { root, plot, X, Y, box };
}

function keyMark(slot, x, y, size = 13) {
  return svg("use", { href: `#k${slot}`, x: x - size / 2, y: y - size / 2, width: size, height: size });
}

// Points with whiskers, the front of those that none beats in both, and a name beside each where there is room.
// points: {slot, label, x, y, low, high, told, hollow}. `less` is true where a smaller y is better.
function frontChart(title, x, y, points, less) {
  const values = points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]);
  const chart = axes(title, { ...x, log: true, values: points.map((p) => p.x) }, { ...y, values });
  const { plot, X, Y, box } = chart;
  const better = (p, q) => (less ? p.y < q.y : p.y > q.y);
  const front = points.filter((p) => !points.some((q) => q.x <= p.x && better(q, p)));
  front.sort((p, q) => p.x - q.x || (better(p, q) ? 1 : -1));
  if (front.length > 1) {
    const path = front.map((p, i) => (i ? `H${X.place(p.x)}V${Y.place(p.y)}` : `M${X.place(p.x)},${Y.place(p.y)}`));
    plot.append(svg("path", { d: path.join(""), class: "front" }));
  }
  const taken = points.flatMap((p) => [
    { x: X.place(p.x) - 7, y: Y.place(p.y) - 7, w: 14, h: 14 },
    { x: X.place(p.x) - 1, y: Y.place(p.high ?? p.y), w: 2, h: Y.place(p.low ?? p.y) - Y.place(p.high ?? p.y) },
  ]);
  for (const p of points) {
    const [px, py] = [X.place(p.x), Y.place(p.y)];
    const group = svg("g", { "data-slot": p.slot, "data-told": p.told, class: "point" });
    if (p.low !== null) {
      group.append(svg("line", { x1: px, x2: px, y1: Y.place(p.low), y2: Y.place(p.high), class: `s${p.slot % 10}` }));
    }
    group.append(svg("circle", { cx: px, cy: py, r: 14, class: "reach" }), keyMark(p.slot, px, py));
    if (p.hollow) group.append(svg("circle", { cx: px, cy: py, r: 2.2, class: "hollow" }));
    const name = nameBeside(p.label, px, py, taken, box);
    if (name) group.append(name);
    plot.append(group);
  }
  return chart.root;
}

// A name that covers no mark, whisker or other name: right of its mark, left, above or below; none if all are taken.
function nameBeside(label, px, py, taken, box) {
  const text = label.length > 26 ? `${label.slice(0, 25)}…` : label, w = 6.2 * text.length, h = 13;
  const tries = [[px + 11, py - 6.5, "start"], [px - 11 - w, py - 6.5, "end"], [px - w / 2, py - 24, "middle"],
    [px - w / 2, py + 11, "middle"], [px + 9, py - 20, "start"], [px + 9, py + 7, "start"]];
  for (const [left, top, anchor] of tries) {
    const inside = left >= box.left - 4 && left + w <= box.right + 12 && top >= 0 && top + h <= box.bottom;
    const free = taken.every((t) => left > t.x + t.w || left + w < t.x || top > t.y + t.h || top + h < t.y);
    if (!inside || !free) continue;
    taken.push({ x: left, y: top, w, h });
    const at = anchor === "start" ? left : anchor === "end" ? left + w : left + w / 2;
    return svg("text", { x: at, y: top + 10.5, "text-anchor": anchor, class: "name" }, text);
  }
  return null;
}

// Lines of (x, y) points, each a method on one case. lines: {slot, told, points}. `diagonal`: where x = y is drawn to,
// from 0, if it is what a line should follow.
function lineChart(title, x, y, lines, log, diagonal = 0) {
  const size = diagonal ? { width: 420, height: 380 } : { width: 760, height: 400 };
  const all = lines.flatMap((line) => line.points);
  const ends = diagonal ? [0, diagonal] : [];
  const values = { x: [...all.map((p) => p[0]), ...ends], y: [...all.map((p) => p[1]), ...ends] };
  const chart = axes(title, { ...x, log, values: values.x }, { ...y, values: values.y }, size);
  const { plot, X, Y } = chart;
  if (diagonal) {
    const d = `M${X.place(0)},${Y.place(0)}L${X.place(diagonal)},${Y.place(diagonal)}`;
    plot.append(svg("path", { d, class: "front" }));
  }
  for (const line of lines) {
    const d = line.points.map(([px, py], i) => `${i ? "L" : "M"}${X.place(px)},${Y.place(py)}`).join("");
    const [lastX, lastY] = line.points[line.points.length - 1];
    const group = svg("g", { "data-slot": line.slot, "data-told": line.told, class: "point" });
    group.append(svg("path", { d, class: "reach" }), svg("path", { d, class: `line s${line.slot % 10}` }));
    group.append(keyMark(line.slot, X.place(lastX), Y.place(lastY), 11));
    plot.append(group);
  }
  return chart.root;
}
