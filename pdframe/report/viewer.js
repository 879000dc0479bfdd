// The slice viewer: truth, one method, their difference; one position, one window and one cursor for all three.
"use strict";

const AXES = [
  { name: "axial", up: false, marks: ["R", "A"] },
  { name: "coronal", up: true, marks: ["R", "H"] },
  { name: "sagittal", up: true, marks: ["A", "H"] },
];
// RdBu of ColorBrewer, from -1 to 1.
const DIVERGING = [[5, 48, 97], [33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240], [247, 247, 247],
  [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43], [103, 0, 31]];

async function unpack(id) {
  const text = atob(document.getElementById(id).textContent.trim());
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const n = planes.length / 2, volume = new Int16Array(n);
  for (let i = 0; i < n; i++) {
    const folded = planes[i] | (planes[n + i] << 8);
    volume[i] = (i ? volume[i - 1] : 0) + ((folded >>> 1) ^ -(folded & 1)); // wraps around in int16, as packed
  }
  return volume;
}

// Where the pixels of slice k lie in a (z, y, x) volume: start, step per row, step per column. Heads are above.
function sliceAt([nz, ny, nx], axis, k) {
  const plane = ny * nx;
  if (axis === 0) return { width: nx, height: ny, start: k * plane, row: nx, column: 1 };
  const top = (nz - 1) * plane;
  if (axis === 1) return { width: nx, height: nz, start: top + k * nx, row: -plane, column: 1 };
  return { width: ny, height: nz, start: top + k, row: -plane, column: nx };
}

function grey(low, high) {
  return (value) => {
    const g = Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low))));
    return [g, g, g];
  };
}

function diverging(span) {
  return (value) => {
    const t = (Math.min(1, Math.max(-1, value / span)) + 1) * 5, i = Math.min(9, Math.floor(t));
    return DIVERGING[i].map((c, j) => Math.round(c + (t - i) * (DIVERGING[i + 1][j] - c)));
  };
}

function paint(canvas, slice, valueAt, colour) {
  const { width, height, start, row, column } = slice;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const known = new Map();
  for (let r = 0, p = 0; r < height; r++) {
    for (let c = 0; c < width; c++, p += 4) {
      const value = valueAt(start + r * row + c * column);
      let rgb = known.get(value);
      if (!rgb) known.set(value, (rgb = colour(value)));
      image.data.set(rgb, p);
      image.data[p + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

class Viewer {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.at = { case: 0, method: "", axis: 0, low: data.window[0], high: data.window[1] };
    this.volumes = new Map();
    this.parts = Object.fromEntries([...root.querySelectorAll("[data-part]")].map((e) => [e.dataset.part, e]));
    this.panels = ["truth", "found", "error"].map((name) => this.parts[name].querySelector("canvas"));
    data.cases.forEach((c, i) => this.parts.case.add(new Option(`${c.problem} · ${c.scan} · seed ${c.seed}`, i)));
    this.listen();
    this.open(0);
  }

  listen() {
    const { parts } = this, on = (element, event, act) => element.addEventListener(event, act);
    on(parts.case, "change", () => this.open(+parts.case.value));
    on(parts.slice, "input", () => this.go(+parts.slice.value));
    on(parts.span, "change", () => this.draw());
    for (const b of parts.axes.children) on(b, "click", () => this.turn(+b.dataset.axis));
    for (const b of parts.presets.children) on(b, "click", () => this.window(+b.dataset.low, +b.dataset.high));
    for (const input of [parts.level, parts.width]) on(input, "change", () => this.fromLevel());
    on(parts.stage, "keydown", (event) => this.key(event));
    on(parts.stage, "wheel", (event) => this.wheel(event));
    for (const canvas of this.panels) {
      on(canvas, "pointermove", (event) => this.point(canvas, event));
      on(canvas, "pointerleave", () => this.point(null));
    }
  }

  get case() { return this.data.cases[this.at.case]; }
  get depth() { return this.case.shape[this.at.axis]; }

  async load(id) {
    if (!this.volumes.has(id)) this.volumes.set(id, unpack(id));
    return this.volumes.get(id);
  }

  async open(index) {
    this.at.case = index;
    this.volumes.clear();
    const { methods } = this.case;
    this.position = this.case.shape.map((n) => n >> 1);
    this.thumbs(methods);
    this.turn(this.at.axis, false);
    const same = methods.find((m) => m.label === this.at.method && m.volume);
    await this.show((same ?? methods.find((m) => m.best) ?? methods.find((m) => m.volume)).label);
  }

  thumbs(methods) {
    const made = methods.map((method) => {
      const button = document.createElement("button"), canvas = document.createElement("canvas");
      button.type = "button";
      button.disabled = !method.volume;
      button.dataset.method = method.label;
      const name = document.createElement("span"), note = document.createElement("small");
      name.textContent = method.label;
      note.textContent = method.short;
      button.append(method.volume ? canvas : document.createElement("i"), name, note);
      button.addEventListener("click", () => this.show(method.label));
      return button;
    });
    this.parts.methods.replaceChildren(...made);
  }

  async show(label) {
    this.at.method = label;
    for (const b of this.parts.methods.children) b.setAttribute("aria-pressed", b.dataset.method === label);
    const index = this.at.case, method = this.case.methods.find((m) => m.label === label);
    const [truth, found] = await Promise.all([this.load(this.case.truth), this.load(method.volume)]);
    if (this.at.method !== label || this.at.case !== index) return; // another was chosen meanwhile
    Object.assign(this, { truth, found });
    this.parts.name.textContent = label;
    this.parts.numbers.textContent = method.told;
    this.draw();
    for (const other of this.case.methods) {
      if (other.volume) this.load(other.volume).then(() => this.drawThumbs());
    }
  }

  turn(axis, redraw = true) {
    this.at.axis = axis;
    for (const b of this.parts.axes.children) b.setAttribute("aria-pressed", +b.dataset.axis === axis);
    this.parts.slice.max = this.depth - 1;
    const [, sy, sx] = this.case.spacing_mm, [nz, ny, nx] = this.case.shape, sz = this.case.spacing_mm[0];
    const size = [[nx * sx, ny * sy], [nx * sx, nz * sz], [ny * sy, nz * sz]][axis];
    this.root.style.setProperty("--shape", `${size[0]} / ${size[1]}`);
    for (const mark of this.root.querySelectorAll("[data-mark]")) mark.textContent = AXES[axis].marks[mark.dataset.mark];
    if (redraw) this.draw();
  }

  go(slice) {
    this.position[this.at.axis] = Math.max(0, Math.min(this.depth - 1, slice));
    this.draw();
  }

  key(event) {
    const here = this.position[this.at.axis], last = this.depth - 1;
    const steps = { ArrowUp: here + 1, ArrowRight: here + 1, ArrowDown: here - 1, ArrowLeft: here - 1,
      PageUp: here + 10, PageDown: here - 10, Home: 0, End: last };
    if (event.key in steps) this.go(steps[event.key]);
    else if (event.key === "n" || event.key === "p") this.next(event.key === "n" ? 1 : -1);
    else return;
    event.preventDefault();
  }

  wheel(event) {
    const next = this.position[this.at.axis] - Math.sign(event.deltaY);
    if (next < 0 || next >= this.depth || event.ctrlKey) return; // at the end the page scrolls on
    event.preventDefault();
    this.go(next);
  }

  next(step) {
    const usable = this.case.methods.filter((m) => m.volume).map((m) => m.label);
    this.show(usable[(usable.indexOf(this.at.method) + step + usable.length) % usable.length]);
  }

  window(low, high) {
    Object.assign(this.at, { low, high });
    this.draw();
  }

  fromLevel() {
    const level = +this.parts.level.value, width = Math.max(1, +this.parts.width.value);
    this.window(level - width / 2, level + width / 2);
  }

  draw() {
    if (!this.truth) return;
    const { parts, at } = this, { low, high } = at, step = this.case.step_hu, span = +parts.span.value;
    const slice = sliceAt(this.case.shape, at.axis, this.position[at.axis]), { truth, found } = this;
    paint(this.panels[0], slice, (i) => truth[i] * step, grey(low, high));
    paint(this.panels[1], slice, (i) => found[i] * step, grey(low, high));
    paint(this.panels[2], slice, (i) => (found[i] - truth[i]) * step, diverging(span));
    parts.slice.value = this.position[at.axis];
    const told = `${AXES[at.axis].name} slice ${this.position[at.axis] + 1} of ${this.depth}`;
    parts.slice.setAttribute("aria-valuetext", told);
    parts.where.textContent = told;
    parts.level.value = (low + high) / 2;
    parts.width.value = high - low;
    for (const b of parts.presets.children) {
      b.setAttribute("aria-pressed", +b.dataset.low === low && +b.dataset.high === high);
    }
    for (const e of this.root.querySelectorAll("[data-low-hu]")) e.textContent = low;
    for (const e of this.root.querySelectorAll("[data-high-hu]")) e.textContent = `${high} HU`;
    for (const e of this.root.querySelectorAll("[data-span]")) e.textContent = `${e.dataset.span}${span} HU`;
    this.drawThumbs();
  }

  async drawThumbs() {
    const { axis, low, high } = this.at, step = this.case.step_hu;
    const slice = sliceAt(this.case.shape, axis, this.position[axis]);
    for (const button of this.parts.methods.children) {
      const method = this.case.methods.find((m) => m.label === button.dataset.method);
      if (!method?.volume || !this.volumes.has(method.volume)) continue;
      const volume = await this.volumes.get(method.volume);
      paint(button.querySelector("canvas"), slice, (i) => volume[i] * step, grey(low, high));
    }
  }

  // The voxel below the pointer in all three: its HU, and a cross.
  point(canvas, event) {
    const inside = canvas && this.truth;
    this.root.classList.toggle("pointing", Boolean(inside));
    if (!inside) return ["truth", "found", "error"].forEach((n) => (this.parts[`${n}Value`].textContent = ""));
    const box = canvas.getBoundingClientRect();
    const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const slice = sliceAt(this.case.shape, this.at.axis, this.position[this.at.axis]);
    const column = Math.min(slice.width - 1, Math.max(0, Math.floor(share[0] * slice.width)));
    const row = Math.min(slice.height - 1, Math.max(0, Math.floor(share[1] * slice.height)));
    const i = slice.start + row * slice.row + column * slice.column, step = this.case.step_hu;
    const [truth, found] = [this.truth[i] * step, this.found[i] * step], error = found - truth;
    this.parts.truthValue.textContent = `${truth} HU`;
    this.parts.foundValue.textContent = `${found} HU`;
    this.parts.errorValue.textContent = `${error > 0 ? "+" : ""}${error} HU`;
    this.root.style.setProperty("--x", `${(100 * (column + 0.5)) / slice.width}%`);
    this.root.style.setProperty("--y", `${(100 * (row + 0.5)) / slice.height}%`);
  }
}
