"use strict";

/* The page: what is picked, and how it looks. The numbers come from network.js and from the data that are shipped with the page. */
(() => {
  const { Network, TENSORS, TOTAL, GATES, SIDE, ranks, numKept, paths } = SnipNetwork;
  const STEPS = 20; // of the factor c
  const SLICE = 12; // milliseconds of computing before the page gets its turn
  const CHUNK = 10; // images computed at once
  const FRAME = 18; // pixels around a canvas, as in the style sheet
  const LEAST_KEPT = 0.03; // share at the right end of the chart of error rates
  const CRITERIA = { snip: "SNIP", exact: "exact salience" };

  // ---------------------------------------------------------------- data

  const data = JSON.parse(document.getElementById("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const images = Float64Array.from(bytes(data.images), (pixel) => (pixel / 255 - data.mean) / data.deviation);
  const labels = Uint8Array.from(data.labels);
  const tensors = TENSORS.map((tensor, t) => ({ ...tensor, ...data.tensors[t] }));
  const states = Object.fromEntries(Object.entries(data.states).map(([key, { name, weights, snip, exact }]) => {
    const values = { weights: floats(weights), snip: floats(snip), exact: floats(exact) };
    values.gap = values.snip.map((s, i) => -s - values.exact[i]); // the tangent's prediction minus the exact change
    const order = { snip: ranks(values.snip), exact: ranks(values.exact) };
    return [key, { name, values, order, network: new Network(values.weights, images, labels) }];
  }));
  const everyPath = paths(new Uint8Array(TOTAL).fill(1));

  const chosen = { state: Object.keys(states)[0], tensor: 0, index: 0, step: STEPS, sparsity: 9500, criterion: "snip", colour: "weights" };
  const state = () => states[chosen.state];

  // ---------------------------------------------------------------- words

  const element = (id) => document.getElementById(id);
  const grouped = new Intl.NumberFormat("en-GB");
  const whole = (number) => grouped.format(Math.round(number));
  const minus = (text) => text.replace("-", "−");
  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const power = (exponent) => `10${exponent < 0 ? "⁻" : ""}${[...String(Math.abs(exponent))].map((d) => SUPERSCRIPTS[d]).join("")}`;
  const short = (sparsity) => String(sparsity / 10000);

  /** A number with three digits and its sign, in powers of ten where it is small. */
  function signed(number) {
    if (number === 0) return "0";
    const exponent = Math.floor(Math.log10(Math.abs(number)));
    const sign = number > 0 ? "+" : "−";
    if (exponent >= -1 && exponent < 3) return sign + Math.abs(number).toPrecision(3);
    return `${sign}${(Math.abs(number) / 10 ** exponent).toFixed(2)} × ${power(exponent)}`;
  }

  /** An element with attributes and children; text is put in as text. */
  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "g", "line", "path", "rect", "circle", "text"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /** Put in a text, unless it is there: what does not change costs no layout. */
  function say(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  function row(header, cells, classes = []) {
    return make("tr", {}, make("th", { scope: "row" }, header), ...cells.map((cell, i) => make("td", classes[i] ? { class: classes[i] } : {}, cell)));
  }

  const COORDINATES = {
    "conv1.weight": ["kernel", null, "row", "column"],
    "conv2.weight": ["to channel", "from channel", "row", "column"],
    "full1.weight": ["to unit", "from input"],
    "full2.weight": ["to unit", "from unit"],
    "full3.weight": ["to digit", "from unit"],
    "conv1.bias": ["channel"],
    "conv2.bias": ["channel"],
    "full1.bias": ["unit"],
    "full2.bias": ["unit"],
    "full3.bias": ["digit"],
  };

  /** The place of a parameter in its tensor: the names that have a choice, counted from 1, and digits from 0. */
  function coordinates(tensor, index) {
    const places = [];
    let rest = index;
    for (let axis = tensor.shape.length - 1; axis >= 0; axis--) {
      places.unshift(rest % tensor.shape[axis]);
      rest = Math.floor(rest / tensor.shape[axis]);
    }
    return COORDINATES[tensor.name].map((name, axis) => {
      const first = name !== null && name.endsWith("digit") ? 0 : 1;
      return { name, axis, first, value: places[axis] + first, size: tensor.shape[axis] };
    }).filter(({ name }) => name !== null);
  }

  const where = (tensor, index) => `${tensor.label}, ${coordinates(tensor, index).map(({ name, value }) => `${name} ${value}`).join(", ")}`;

  // ---------------------------------------------------------------- colours and cells

  let palette = {};

  function readPalette() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => {
      const hex = style.getPropertyValue(`--${name}`).trim();
      return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    };
    const names = ["snip", "exact", "both", "empty", "negative", "positive", "zero", "dark-pixel", "bright-pixel"];
    palette = Object.fromEntries(names.map((name) => [name, read(name)]));
    palette.picked = style.getPropertyValue("--picked").trim();
  }

  const packed = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const mixed = (from, to, share) => packed(from.map((f, i) => Math.round(f + (to[i] - f) * share)));

  /** Where the parameters of a tensor are drawn: kernels side by side with a gap, matrices with an input per column. */
  function layoutOf({ shape }) {
    const [columns, rows, place] = shape.length === 4
      ? [6 * shape[0] - 1, 6 * shape[1] - 1, (i) => {
        const kernel = Math.floor(i / 25);
        return [6 * Math.floor(kernel / shape[1]) + (i % 5), 6 * (kernel % shape[1]) + Math.floor((i % 25) / 5)];
      }]
      : shape.length === 2 ? [shape[1], shape[0], (i) => [i % shape[1], Math.floor(i / shape[1])]] : [shape[0], 1, (i) => [i, 0]];
    return { columns, rows, place, count: shape.reduce((a, b) => a * b, 1) };
  }

  /** A canvas of square cells, one per number. */
  class Cells {
    constructor(canvas, layout, largest) {
      this.canvas = canvas;
      this.largest = largest; // pixels of a cell
      this.setLayout(layout);
    }

    setLayout(layout) {
      this.layout = layout;
      const { columns, rows, place, count } = layout;
      this.small = new OffscreenCanvas(columns, rows);
      this.image = new ImageData(columns, rows);
      this.colours = new Uint32Array(this.image.data.buffer);
      this.indices = new Int32Array(columns * rows).fill(-1);
      this.at = new Int32Array(count);
      for (let i = 0; i < count; i++) {
        const [x, y] = place(i);
        this.at[i] = y * columns + x;
        this.indices[this.at[i]] = i;
      }
      this.fit();
    }

    /** As large as the frame allows; cells that can be seen one by one have whole pixels of the screen. */
    fit() {
      const { columns, rows } = this.layout;
      const ratio = window.devicePixelRatio || 1;
      const room = this.canvas.parentElement.parentElement.clientWidth - FRAME;
      const scale = Math.min(room / columns, this.largest) * ratio;
      this.scale = scale < 3 ? scale : Math.floor(scale);
      this.canvas.width = Math.floor(columns * this.scale);
      this.canvas.height = Math.ceil(rows * this.scale);
      this.canvas.style.width = `${this.canvas.width / ratio}px`;
    }

    /** Paint every cell in the packed colour of its index, and frame one. */
    paint(colourOf, framed = -1) {
      for (let i = 0; i < this.at.length; i++) this.colours[this.at[i]] = colourOf(i);
      this.small.getContext("2d").putImageData(this.image, 0, 0);
      const context = this.canvas.getContext("2d");
      context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      context.imageSmoothingEnabled = false;
      context.drawImage(this.small, 0, 0, this.canvas.width, this.canvas.height);
      if (framed < 0) return;
      const width = Math.max(2, Math.round(this.scale / 5));
      const [x, y] = [this.at[framed] % this.layout.columns, Math.floor(this.at[framed] / this.layout.columns)];
      const size = Math.max(this.scale, 6);
      const middle = (place, full) => Math.min(Math.max(place * this.scale + (this.scale - size) / 2, width / 2), full - size - width / 2);
      context.strokeStyle = palette.picked;
      context.lineWidth = width;
      context.strokeRect(middle(x, this.canvas.width), this.layout.rows === 1 ? width / 2 : middle(y, this.canvas.height), size, this.layout.rows === 1 ? this.canvas.height - width : size);
    }

    /** The index under the pointer, or -1. */
    indexAt(event) {
      const box = this.canvas.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * this.layout.columns);
      const y = Math.floor(((event.clientY - box.top) / box.height) * this.layout.rows);
      return x < 0 || y < 0 || x >= this.layout.columns || y >= this.layout.rows ? -1 : this.indices[y * this.layout.columns + x];
    }
  }

  // ---------------------------------------------------------------- charts

  /** Round numbers, about `count` of them, that cover a range. */
  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * unit).find((s) => s >= raw);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return found;
  }

  /** An empty chart as wide as its place: the SVG element, and functions from values to pixels. */
  function chart(place, { height, left, right = 12, top = 10, bottom = 40, xs, ys, label }) {
    const width = Math.max(260, place.clientWidth);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
    const x = (value) => left + ((value - xs[0]) / (xs[1] - xs[0])) * (width - left - right);
    const y = (value) => height - bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (height - bottom - top);
    place.replaceChildren(svg);
    return { svg, x, y, width, height, left, right, top, bottom };
  }

  function words(svg, x, y, text, anchor = "middle") {
    svg.append(make("text", { x, y, "text-anchor": anchor }, text));
  }

  function line(svg, points, attributes) {
    const path = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    svg.append(make("path", { d: path, fill: "none", "stroke-width": 2.2, ...attributes }));
  }

  const LOOKS = {
    loss: { stroke: "var(--text)" },
    snip: { stroke: "var(--snip)", "stroke-dasharray": "8 4" },
    second: { stroke: "var(--second)", "stroke-dasharray": "2 3" },
  };

  // ---------------------------------------------------------------- one weight

  let map = null; // the drawing of the layer
  let path = { points: [], done: false };
  let job = 0;
  let finished = Promise.resolve();

  const factorOf = (step) => (STEPS - step) / STEPS;
  const pause = () => new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
  });

  /** Do small tasks one after another, and let the page have its turn in between; false if another job has begun. */
  async function inSlices(tasks, mine) {
    let began = performance.now();
    for (const task of tasks) {
      task();
      if (performance.now() - began > SLICE) {
        await pause();
        if (mine !== job) return false;
        began = performance.now();
      }
    }
    return true;
  }

  const chunks = (count) => Array.from({ length: Math.ceil(count / CHUNK) }, (_, k) => [k * CHUNK, Math.min(count, (k + 1) * CHUNK)]);

  /** Compute the loss path of the chosen weight, first its ends, and draw it as it grows. */
  async function computePath() {
    const mine = ++job;
    const { network } = state();
    const { tensor, index } = chosen;
    path = { points: [], done: false, slope: null };
    showPath();
    while (!network.prepare(CHUNK)) {
      await pause();
      if (mine !== job) return;
    }
    const parts = chunks(network.count);
    const sums = { slope: 0, curvature: 0 };
    const derive = parts.map(([first, stop]) => () => {
      const { slope, curvature } = network.derivativesOver(tensor, index, first, stop);
      sums.slope += slope;
      sums.curvature += curvature;
    });
    if (!await inSlices(derive, mine)) return;
    path.slope = sums.slope / network.count;
    path.curvature = sums.curvature / network.count;
    const between = Array.from({ length: STEPS - 1 }, (_, k) => ((k * 7) % (STEPS - 1)) + 1); // spread out, so that the line takes shape early
    for (const step of [0, STEPS, ...between]) {
      const point = { step, change: 0, switched: new Float64Array(GATES.length) };
      const scale = parts.map(([first, stop]) => () => {
        point.change += network.changeOver(tensor, index, factorOf(step), first, stop, point.switched) / network.count;
      });
      if (step > 0 && !await inSlices(scale, mine)) return;
      path.points.push(point);
      path.points.sort((a, b) => a.step - b.step);
      drawPath();
    }
    path.done = true;
    showPath();
  }

  const tangent = (c) => path.slope * (c - 1);
  const bent = (c) => tangent(c) + (path.curvature / 2) * (c - 1) ** 2;
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

  function drawPath() {
    const place = element("path-chart");
    const known = path.slope !== null && path.points.length > 0;
    const heights = known ? [0, tangent(0), bent(0), ...path.points.map((p) => p.change)] : [0, 1];
    let [low, high] = [Math.min(...heights), Math.max(...heights)];
    if (low === high) [low, high] = [-1e-9, 1e-9];
    const room = 0.06 * (high - low);
    const exponent = Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high))));
    const label = path.done ? `Loss path of one weight. ${summary()}` : "Loss path of one weight; it is being computed.";
    const strip = 54; // pixels for the bars of gates
    const view = chart(place, { height: 350, left: 58, top: 22, bottom: 44 + strip, xs: [1, 0], ys: [low - room, high + room], label });
    const { svg, x, y } = view;
    for (const tick of known ? ticks(low - room, high + room, 5) : []) {
      svg.append(make("line", { class: "grid", x1: x(1), x2: x(0), y1: y(tick), y2: y(tick) }));
      words(svg, view.left - 6, y(tick) + 4, minus((tick / 10 ** exponent).toFixed(1)), "end");
    }
    const floor = view.height - 44;
    for (const tick of [1, 0.8, 0.6, 0.4, 0.2, 0]) words(svg, x(tick), floor + 16, String(tick));
    words(svg, (x(1) + x(0)) / 2, view.height - 8, "factor c of the weight");
    words(svg, 2, 12, known ? `change of the loss (${power(exponent)})` : "computing …", "start");
    svg.append(make("line", { class: "axis", x1: x(1), x2: x(0), y1: floor, y2: floor }));
    if (!known) return;
    const c = factorOf(chosen.step);
    svg.append(make("line", { class: "axis", x1: x(c), x2: x(c), y1: view.top, y2: floor, "stroke-dasharray": "3 3" }));
    const most = Math.max(...path.points.map((p) => sum(p.switched)));
    for (const point of path.points) {
      const height = (sum(point.switched) / Math.max(most, 1)) * (strip - 18);
      const now = point.step === chosen.step;
      svg.append(make("rect", { x: x(factorOf(point.step)) - 4, y: floor - height, width: 8, height, fill: now ? "var(--text)" : "var(--soft)" }));
    }
    words(svg, x(1), floor - strip + 12, `gates switched (at most ${whole(most)})`, "start");
    const factors = Array.from({ length: STEPS + 1 }, (_, step) => factorOf(step));
    line(svg, factors.map((f) => [x(f), y(bent(f))]), LOOKS.second);
    line(svg, factors.map((f) => [x(f), y(tangent(f))]), LOOKS.snip);
    line(svg, path.points.map((p) => [x(factorOf(p.step)), y(p.change)]), LOOKS.loss);
    const end = path.points.find((p) => p.step === STEPS);
    if (end) svg.append(make("rect", { x: x(0) - 5, y: y(end.change) - 5, width: 10, height: 10, fill: "var(--exact)", stroke: "var(--text)" }));
    const here = path.points.find((p) => p.step === chosen.step);
    if (here) svg.append(make("circle", { cx: x(c), cy: y(here.change), r: 4, fill: "var(--text)" }));
  }

  function sample(attributes, marker = false) {
    const svg = make("svg", { viewBox: "0 0 38 14", "aria-hidden": "true" });
    if (marker) svg.append(make("rect", { x: 14, y: 2, width: 10, height: 10, fill: "var(--exact)", stroke: "var(--text)" }));
    else svg.append(make("line", { x1: 0, x2: 38, y1: 7, y2: 7, "stroke-width": 2.5, ...attributes }));
    return svg;
  }

  /** What the chart shows, in a sentence or three. */
  function summary() {
    const end = path.points.find((p) => p.step === STEPS);
    const [predicted, second, exact] = [tangent(0), bent(0), end.change];
    const off = (value) => (exact === 0 ? "" : `, off by ${whole(Math.abs(100 * (value - exact) / exact))} %`);
    if (exact === 0 && predicted === 0) return "Removing this weight changes the loss of no image: closed gates block everything it does.";
    return `Removing this weight changes the loss by ${signed(exact)}. SNIP's tangent says ${signed(predicted)}${off(predicted)}. `
      + `The second order says ${signed(second)}${off(second)}.`;
  }

  function showPath() {
    const tensor = tensors[chosen.tensor];
    const at = tensor.start + chosen.index;
    const c = factorOf(chosen.step);
    drawPath();
    const legend = [["the loss", LOOKS.loss, false], ["SNIP's tangent", LOOKS.snip, false], ["second order", LOOKS.second, false], ["exact change", null, true]];
    const end = path.points.find((p) => p.step === STEPS);
    const values = path.done ? ["", `: ${signed(tangent(0))}`, `: ${signed(bent(0))}`, `: ${signed(end.change)}`] : ["", "", "", ""];
    element("path-legend").replaceChildren(...legend.map(([name, look, marker], i) => make("li", {}, sample(look, marker), name + values[i])));
    element("factor-value").textContent = c.toFixed(2);
    element("factor").setAttribute("aria-valuetext", `c = ${c.toFixed(2)}`);
    const here = path.points.find((p) => p.step === chosen.step);
    const weight = `${where(tensor, chosen.index)}: the weight is ${signed(state().values.weights[at])}.`;
    if (!path.done) {
      element("path-text").setAttribute("aria-busy", "true");
      return;
    }
    element("path-text").removeAttribute("aria-busy");
    const along = chosen.step === STEPS ? "" : ` At c = ${c.toFixed(2)} the loss has changed by ${signed(here.change)}.`;
    element("path-text").textContent = `${weight[0].toUpperCase()}${weight.slice(1)} ${summary()}${along} ${whole(sum(here.switched))} gates have switched.`;
    element("gates").tBodies[0].replaceChildren(...GATES.map(({ layer, kind, count }, gate) => row(layer, [
      kind, whole(here.switched[gate]), whole(count * labels.length)])));
    element("path-table").tBodies[0].replaceChildren(...path.points.map((point) => row(factorOf(point.step).toFixed(2), [
      signed(point.change), signed(tangent(factorOf(point.step))), signed(bent(factorOf(point.step))), whole(sum(point.switched))])));
  }

  /** The colour of a parameter in the picker: its value between the largest negative and positive ones of the tensor. */
  function paintMap() {
    const tensor = tensors[chosen.tensor];
    const values = state().values[chosen.colour].subarray(tensor.start, tensor.start + tensor.size);
    let largest = 0;
    for (const value of values) largest = Math.max(largest, Math.abs(value));
    const colour = (i) => {
      const share = largest === 0 ? 0 : Math.sqrt(Math.abs(values[i]) / largest);
      return mixed(palette.zero, values[i] < 0 ? palette.negative : palette.positive, share);
    };
    map.paint(colour, chosen.index);
  }

  const HINTS = {
    "conv1.weight": "The six kernels of conv 1, side by side. Click a square to pick its weight.",
    "conv2.weight": "The kernels of conv 2: a column for each of the 16 channels they lead to, a row for each of the 6 they come from. Click a square to pick its weight.",
    weight: "A column for each input, a row for each unit. Click to pick a weight.",
    bias: "A square for each bias. Click one to pick it.",
  };

  /** Pick a parameter: the controls, the drawings and its path follow. */
  function pick(tensor, index) {
    const changed = tensor !== chosen.tensor;
    [chosen.tensor, chosen.index] = [tensor, index];
    if (changed) map.setLayout(layoutOf(tensors[tensor]));
    showPicker(changed);
    paintMap();
    drawings.forEach(paint);
    finished = computePath();
  }

  function showPicker(rebuild) {
    const tensor = tensors[chosen.tensor];
    element("layer").value = String(chosen.tensor);
    const places = coordinates(tensor, chosen.index);
    const holder = element("coordinates");
    if (rebuild || holder.childElementCount !== places.length) {
      holder.replaceChildren(...places.map(({ name, axis, first, size }) => {
        const input = make("input", { type: "number", min: first, max: size - 1 + first, step: 1, "data-axis": axis, "data-first": first });
        input.addEventListener("change", pickByNumbers);
        return make("label", {}, `${name} (${first} to ${size - 1 + first}) `, input);
      }));
    }
    places.forEach(({ value }, i) => { holder.querySelectorAll("input")[i].value = value; });
    element("map-hint").textContent = HINTS[tensor.name] || HINTS[tensor.name.split(".")[1]];
    element("map").setAttribute("aria-label", `All ${whole(tensor.size)} weights of ${tensor.label}. Picked: ${where(tensor, chosen.index)}.`);
  }

  function pickByNumbers() {
    const tensor = tensors[chosen.tensor];
    const places = tensor.shape.map(() => 0);
    for (const input of element("coordinates").querySelectorAll("input")) {
      const [axis, first] = [Number(input.dataset.axis), Number(input.dataset.first)];
      const value = Math.round(Number(input.value)) - first;
      places[axis] = Math.min(Math.max(Number.isFinite(value) ? value : 0, 0), tensor.shape[axis] - 1);
    }
    pick(chosen.tensor, places.reduce((index, place, axis) => index * tensor.shape[axis] + place, 0));
  }

  /** Pick by the place among all parameters. */
  function pickAt(at) {
    const tensor = tensors.findIndex(({ start, size }) => at >= start && at < start + size);
    pick(tensor, at - tensors[tensor].start);
  }

  /** The places that the buttons choose from. */
  function range() {
    const { start, size } = tensors[chosen.tensor];
    return element("stay").checked ? [start, start + size] : [0, TOTAL];
  }

  function pickLargest(values) {
    const [first, stop] = range();
    let best = first;
    for (let i = first; i < stop; i++) if (Math.abs(values[i]) > Math.abs(values[best])) best = i;
    pickAt(best);
  }

  // ---------------------------------------------------------------- all weights

  /** All sparsities of the slider, in ten-thousandths: even steps of the logarithm of the share kept, and every tabulated one. */
  const STOPS = (() => {
    const found = new Set([5000, 9500, ...data.errors.map(({ sparsity }) => Math.round(sparsity * 10000))]);
    for (let k = 0; k <= 300; k++) {
      const sparsity = 1 - 10 ** (-k / 100);
      const unit = sparsity < 0.9 ? 100 : sparsity < 0.99 ? 10 : 1;
      found.add(Math.round((sparsity * 10000) / unit) * unit);
    }
    return [...found].sort((a, b) => a - b);
  })();

  const masks = { snip: new Uint8Array(TOTAL), exact: new Uint8Array(TOTAL) };
  let kept = null; // the masks, and counts

  function computeKept() {
    const count = numKept(chosen.sparsity);
    const { order } = state();
    const { snip, exact } = masks;
    const counts = { snip: [], exact: [] };
    let both = 0;
    for (const { start, size } of tensors) {
      let bySnip = 0;
      let byExact = 0;
      for (let i = start; i < start + size; i++) {
        snip[i] = order.snip[i] < count ? 1 : 0;
        exact[i] = order.exact[i] < count ? 1 : 0;
        bySnip += snip[i];
        byExact += exact[i];
        both += snip[i] & exact[i];
      }
      counts.snip.push(bySnip);
      counts.exact.push(byExact);
    }
    kept = { count, snip, exact, both, either: 2 * count - both, counts };
    kept.ways = paths(kept[chosen.criterion]);
  }

  /** The drawing of one tensor: each parameter in the colour of the score that keeps it. */
  function maskDrawing(t, canvas, largest) {
    const tensor = tensors[t];
    const cells = new Cells(canvas, layoutOf(tensor), largest);
    canvas.dataset.picks = "";
    canvas.addEventListener("click", (event) => {
      const index = cells.indexAt(event);
      if (index >= 0) pick(t, index);
    });
    return {
      cells,
      paint: () => {
        const colours = [palette.empty, palette.snip, palette.exact, palette.both].map(packed);
        const { snip, exact } = kept;
        cells.paint((i) => colours[snip[tensor.start + i] + 2 * exact[tensor.start + i]], t === chosen.tensor ? chosen.index : -1);
      },
      text: () => `${tensor.label}: SNIP keeps ${whole(kept.counts.snip[t])} of ${whole(tensor.size)} weights, exact salience ${whole(kept.counts.exact[t])}.`,
    };
  }

  /** How many weights leave each input of full 1, as 16 pictures of 5 x 5. */
  function inputsDrawing(canvas) {
    const full1 = tensors.find(({ name }) => name === "full1.weight");
    const [units, inputs] = full1.shape;
    const place = (i) => {
      const [channel, at] = [Math.floor(i / 25), i % 25];
      return [6 * (channel % 8) + (at % 5), 6 * Math.floor(channel / 8) + Math.floor(at / 5)];
    };
    const cells = new Cells(canvas, { columns: 47, rows: 11, place, count: inputs }, 12);
    const numbers = () => {
      const [mask, found] = [kept[chosen.criterion], new Uint16Array(inputs)];
      for (let unit = 0, at = full1.start; unit < units; unit++) for (let i = 0; i < inputs; i++, at++) found[i] += mask[at];
      return found;
    };
    return {
      cells,
      paint: () => {
        const found = numbers();
        cells.paint((i) => mixed(palette["dark-pixel"], palette["bright-pixel"], Math.sqrt(found[i] / units)));
      },
      text: () => `The ${inputs} inputs of full 1: ${numbers().filter((n) => n === 0).length} of them keep no weight by ${CRITERIA[chosen.criterion]}.`,
    };
  }

  function pixelsDrawing(canvas) {
    const cells = new Cells(canvas, { columns: SIDE, rows: SIDE, place: (i) => [i % SIDE, Math.floor(i / SIDE)], count: SIDE * SIDE }, 8);
    return {
      cells,
      paint: () => {
        const largest = brightest();
        const share = (i) => (kept.ways[i] === 0 ? 0 : 0.2 + 0.8 * Math.sqrt(kept.ways[i] / everyPath[i] / largest));
        cells.paint((i) => mixed(palette["dark-pixel"], palette["bright-pixel"], share(i)));
      },
      text: pixelText,
    };
  }

  /** The largest share of its ways that a pixel keeps. */
  function brightest() {
    let largest = 0;
    for (let i = 0; i < everyPath.length; i++) largest = Math.max(largest, kept.ways[i] / everyPath[i]);
    return largest;
  }

  function pixelText() {
    let alive = 0;
    for (const ways of kept.ways) alive += ways > 0 ? 1 : 0;
    const keeps = chosen.criterion === "snip" ? "SNIP keeps" : "exact salience keeps";
    const start = `${alive} of ${SIDE * SIDE} pixels reach an output through weights that ${keeps}.`;
    if (alive === 0) return `${start} The network is cut.`;
    const one = 1 / brightest();
    return `${start} A brighter pixel keeps a larger share of its ways to an output. The brightest one keeps one in ${one < 10 ? Number(one.toPrecision(2)) : whole(Number(one.toPrecision(2)))}.`;
  }

  const drawings = [];

  function buildDrawings() {
    const holder = element("layers");
    for (let t = 0; t < tensors.length; t += 2) {
      const [weights, biases] = [tensors[t], tensors[t + 1]];
      const canvases = [weights, biases].map(() => make("canvas", { role: "img" }));
      const layer = make("div", { class: "layer" }, make("h3", {}, weights.label, make("span", { id: `kept-${t}` })));
      holder.append(layer);
      if (weights.name === "full1.weight") {
        const canvas = make("canvas", { role: "img" });
        layer.append(make("p", { class: "hint" }, "Weights kept at each input, one picture for each of conv 2's 16 channels: brighter is more."), make("div", { class: "frame" }, canvas));
        drawings.push(inputsDrawing(canvas));
      }
      layer.append(...canvases.map((canvas) => make("div", { class: "frame" }, canvas)));
      drawings.push(maskDrawing(t, canvases[0], weights.shape.length === 4 ? 16 : 4), maskDrawing(t + 1, canvases[1], 12));
    }
    drawings.push(pixelsDrawing(element("pixels")));
    const owner = new Map(drawings.map((drawing) => [drawing.cells.canvas, drawing]));
    const watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const drawing = owner.get(target);
        drawing.hidden = !isIntersecting;
        if (isIntersecting && drawing.stale) paint(drawing);
      }
    }, { rootMargin: "200px" });
    for (const canvas of owner.keys()) watch.observe(canvas);
  }

  /** Paint a drawing now if it is on the screen, or else when it comes there. */
  function paint(drawing) {
    drawing.stale = drawing.hidden;
    if (!drawing.hidden) drawing.paint();
  }

  const published = Object.keys(data.tensors[0].published); // sparsities
  const isNow = (sparsity) => Math.round(Number(sparsity) * 10000) === chosen.sparsity;
  let countCells = [];

  function buildCounts() {
    const top = make("tr", {}, make("th", { scope: "col", rowspan: 2 }, "layer"), make("th", { scope: "col", rowspan: 2 }, "all"),
      make("th", { scope: "colgroup", colspan: 2 }, "kept by"), make("th", { scope: "colgroup", colspan: published.length }, "published at"));
    const under = make("tr", {}, ...["SNIP", "exact"].map((text) => make("th", { scope: "col" }, text)), ...published.map((s) => make("th", { scope: "col", "data-sparsity": s }, s)));
    const body = tensors.map((tensor) => row(tensor.label, [whole(tensor.size), "", "", ...published.map((s) => whole(tensor.published[s]))]));
    const last = row("together", [whole(TOTAL), "", "", ...published.map((s) => whole(sum(tensors.map((tensor) => tensor.published[s]))))]);
    element("counts").replaceChildren(make("thead", {}, top, under), make("tbody", {}, ...body), make("tfoot", {}, last));
    for (const tr of [...body, last]) published.forEach((s, i) => { tr.cells[4 + i].dataset.sparsity = s; });
    countCells = [...body, last].map((tr) => ({ snip: tr.cells[2], exact: tr.cells[3] }));
    element("jumps").replaceChildren(...published.map((sparsity) => {
      const button = make("button", { type: "button" }, sparsity);
      button.addEventListener("click", () => setSparsity(Math.round(Number(sparsity) * 10000)));
      return button;
    }));
  }

  function showCounts() {
    for (const criterion of Object.keys(CRITERIA)) {
      [...kept.counts[criterion], kept.count].forEach((count, t) => say(countCells[t][criterion], whole(count)));
    }
    for (const cell of element("counts").querySelectorAll("[data-sparsity]")) cell.classList.toggle("now", isNow(cell.dataset.sparsity));
    for (let t = 0; t < tensors.length; t += 2) {
      const [w, b] = [kept.counts[chosen.criterion][t], kept.counts[chosen.criterion][t + 1]];
      say(element(`kept-${t}`), `${whole(w)} of ${whole(tensors[t].size)} weights, ${whole(b)} of ${tensors[t + 1].size} biases`);
    }
  }

  // Error rates of Figure 1, by criterion, with the share kept as a logarithm.
  const measured = Object.fromEntries(Object.keys(CRITERIA).map((criterion) => [criterion, data.errors.filter((e) => e.criterion === criterion).sort((a, b) => a.sparsity - b.sparsity)]));
  const logKept = (sparsity) => -Math.log10(1 - sparsity);

  /** Mean error rate between two tabulated sparsities, or null outside of them. */
  function errorAt(rows, sparsity) {
    const next = rows.findIndex((r) => r.sparsity >= sparsity - 1e-9);
    if (next < 0 || (next === 0 && rows[0].sparsity > sparsity + 1e-9)) return null;
    if (next === 0) return rows[0].mean;
    const [a, b] = [rows[next - 1], rows[next]];
    const share = (logKept(sparsity) - logKept(a.sparsity)) / (logKept(b.sparsity) - logKept(a.sparsity));
    return a.mean + share * (b.mean - a.mean);
  }

  function nearest(rows, sparsity) {
    return rows.reduce((best, r) => (Math.abs(logKept(r.sparsity) - logKept(sparsity)) < Math.abs(logKept(best.sparsity) - logKept(sparsity)) ? r : best));
  }

  const percent = (number) => `${number.toFixed(2)} %`;
  let errorView = null;

  /** The chart of error rates without the marks of the sparsity; it is drawn once for every size of the window. */
  function buildErrors() {
    const rows = Object.values(measured).flat();
    const high = 1.05 * Math.max(...rows.map((r) => r.largest));
    const label = "Error rate after training against sparsity, for SNIP and exact salience; the numbers are in the table below.";
    const view = chart(element("error-chart"), { height: 240, left: 40, top: 22, xs: [0, -Math.log10(LEAST_KEPT)], ys: [0, high], label });
    const { svg, x, y } = view;
    for (const tick of ticks(0, high, 4)) {
      svg.append(make("line", { class: "grid", x1: view.left, x2: view.width - view.right, y1: y(tick), y2: y(tick) }));
      words(svg, view.left - 6, y(tick) + 4, String(Number(tick.toPrecision(3))), "end");
    }
    for (const tick of [0, 0.5, 0.75, 0.9, 0.96]) words(svg, x(logKept(tick)), view.height - view.bottom + 16, String(tick));
    words(svg, (view.left + view.width) / 2, view.height - 6, "sparsity");
    words(svg, 2, 12, "error rate (%)", "start");
    for (const [criterion, colour] of [["exact", "var(--exact)"], ["snip", "var(--snip)"]]) {
      const of = measured[criterion];
      const band = [...of.map((r) => [r, r.largest]), ...of.map((r) => [r, r.smallest]).reverse()];
      const outline = band.map(([r, value], i) => `${i ? "L" : "M"}${x(logKept(r.sparsity)).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      svg.append(make("path", { d: `${outline}Z`, fill: colour, opacity: 0.22 }));
      line(svg, of.map((r) => [x(logKept(r.sparsity)), y(r.mean)]), { stroke: colour, ...(criterion === "exact" ? { "stroke-dasharray": "7 3" } : {}) });
      for (const r of of) {
        if (r.reported !== null) svg.append(make("circle", { cx: x(logKept(r.sparsity)), cy: y(r.reported), r: 3, fill: "none", stroke: "var(--text)" }));
      }
    }
    [["SNIP", "snip", ""], ["exact salience", "exact", "7 3"]].forEach(([name, colour, dash], i) => {
      const top = view.top + 12 + 18 * i;
      svg.append(make("line", { x1: view.left + 10, x2: view.left + 40, y1: top, y2: top, stroke: `var(--${colour})`, "stroke-width": 2.5, "stroke-dasharray": dash }));
      words(svg, view.left + 46, top + 4, name, "start");
    });
    const rule = make("line", { class: "axis", y1: view.top, y2: view.height - view.bottom, "stroke-dasharray": "3 3" });
    const dots = Object.keys(CRITERIA).map((criterion) => make("circle", { r: 5, fill: `var(--${criterion})`, stroke: "var(--text)" }));
    svg.append(rule, ...dots);
    errorView = { ...view, rule, dots };
  }

  function showErrors() {
    const sparsity = chosen.sparsity / 10000;
    const { rule, dots, x, y } = errorView;
    const last = measured.snip[measured.snip.length - 1].sparsity;
    const at = x(logKept(sparsity));
    rule.setAttribute("x1", at);
    rule.setAttribute("x2", at);
    rule.style.display = sparsity <= last ? "" : "none";
    Object.keys(CRITERIA).forEach((criterion, i) => {
      const mean = errorAt(measured[criterion], sparsity);
      dots[i].style.display = mean === null ? "none" : "";
      if (mean === null) return;
      dots[i].setAttribute("cx", at);
      dots[i].setAttribute("cy", y(mean));
    });
    say(element("error-text"), errorText(sparsity, last));
  }

  function errorText(sparsity, last) {
    const parts = Object.entries(CRITERIA).map(([criterion, name]) => {
      const r = nearest(measured[criterion], sparsity);
      return `${name} ${percent(r.mean)} (${r.n} networks, ${r.smallest.toFixed(2)} to ${percent(r.largest)})`;
    });
    const at = nearest(measured.snip, sparsity).sparsity;
    const beyond = sparsity > last ? `Figure 1 ends at sparsity ${last}. ` : "";
    const which = Math.abs(at - sparsity) < 1e-9 ? `At sparsity ${at}` : `At ${at}, the nearest sparsity of Figure 1`;
    return `${beyond}${which}: ${parts.join(", ")}.`;
  }

  function buildErrorTable() {
    const heads = ["sparsity", "score", "networks", "mean (%)", "smallest", "largest", "published"];
    const rows = Object.entries(measured).flatMap(([criterion, of]) => of.map((r) => row(String(r.sparsity), [
      CRITERIA[criterion], String(r.n), r.mean.toFixed(2), r.smallest.toFixed(2), r.largest.toFixed(2), r.reported === null ? "" : r.reported.toFixed(2)])));
    element("error-table").replaceChildren(make("thead", {}, make("tr", {}, ...heads.map((h) => make("th", { scope: "col" }, h)))), make("tbody", {}, ...rows));
  }

  /** Kept weights of every kernel and unit, as tables; only while they are open. */
  function showNumbers() {
    if (!element("numbers").open) return;
    const mask = kept[chosen.criterion];
    const total = (start, count, step = 1) => {
      let number = 0;
      for (let k = 0; k < count; k++) number += mask[start + k * step];
      return whole(number);
    };
    const [conv1, , conv2, , full1, , full2, , full3] = tensors;
    const table = (caption, corner, heads, rows) => make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption }, make("table", {},
      make("caption", {}, caption), make("thead", {}, make("tr", {}, ...[corner, ...heads].map((h) => make("th", { scope: "col" }, h)))), make("tbody", {}, ...rows)));
    const numbers = (count, first = 1) => Array.from({ length: count }, (_, i) => String(i + first));
    const channels = Array.from({ length: conv2.shape[0] }, (_, channel) => {
      let number = 0;
      for (let unit = 0; unit < full1.shape[0]; unit++) for (let at = 0; at < 25; at++) number += mask[full1.start + unit * full1.shape[1] + channel * 25 + at];
      return whole(number);
    });
    const units = (tensor) => numbers(tensor.shape[0]).filter((_, unit) => total(tensor.start + unit * tensor.shape[1], tensor.shape[1]) !== "0").length;
    const name = CRITERIA[chosen.criterion];
    element("number-tables").replaceChildren(
      table(`conv 1: weights of 25 kept in each kernel, by ${name}`, "kernel", numbers(6), [row("kept", numbers(6).map((_, k) => total(conv1.start + 25 * k, 25)))]),
      table(`conv 2: weights of 25 kept in each kernel, by ${name}`, "to channel", numbers(6).map((n) => `from ${n}`), numbers(16).map((channel, o) => row(channel, numbers(6).map((_, i) => total(conv2.start + (6 * o + i) * 25, 25))))),
      table(`full 1: weights of ${whole(25 * full1.shape[0])} kept from each channel of conv 2, by ${name}`, "channel", numbers(16), [row("kept", channels)]),
      table(`full 3: weights of ${full3.shape[1]} kept for each digit, by ${name}`, "digit", numbers(10, 0), [row("kept", numbers(10).map((_, d) => total(full3.start + d * full3.shape[1], full3.shape[1])))]),
      make("p", {}, `Units that keep at least one weight from before: ${units(full1)} of ${full1.shape[0]} in full 1, and ${units(full2)} of ${full2.shape[0]} in full 2.`),
    );
  }

  let announced = 0;

  /** Everything that follows the sparsity. */
  function showMasks() {
    computeKept();
    drawings.forEach(paint);
    showCounts();
    showErrors();
    const overlap = kept.either === 0 ? 1 : kept.both / kept.either;
    const text = `Sparsity ${short(chosen.sparsity)} keeps ${whole(kept.count)} of ${whole(TOTAL)} weights. Both scores keep ${whole(kept.both)} of them: overlap ${overlap.toFixed(2)}.`;
    say(element("mask-headline"), text);
    say(element("pixels-text"), pixelText());
    element("sparsity").setAttribute("aria-valuetext", `sparsity ${short(chosen.sparsity)}, ${whole(kept.count)} weights kept`);
    clearTimeout(announced);
    announced = setTimeout(() => { // once the hand rests
      element("mask-text").textContent = `${text} ${pixelText()} ${element("error-text").textContent}`;
      for (const drawing of drawings) drawing.cells.canvas.setAttribute("aria-label", drawing.text());
      showNumbers();
    }, 500);
  }

  let asked = 0;

  /** Show the masks with the next picture of the screen, once for however many events. */
  function showMasksSoon() {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(showMasks);
  }

  function setSparsity(sparsity, from = null) {
    chosen.sparsity = Math.min(Math.max(sparsity, 0), 9990);
    if (from !== "slider") {
      const closest = STOPS.reduce((best, stop, i) => (Math.abs(stop - chosen.sparsity) < Math.abs(STOPS[best] - chosen.sparsity) ? i : best), 0);
      element("sparsity").value = String(closest);
    }
    if (from !== "number") element("sparsity-number").value = short(chosen.sparsity);
    showMasksSoon();
  }

  // ---------------------------------------------------------------- the whole page

  function showState() {
    const { network, name } = state();
    const ready = network.prepared === network.count;
    element("state-text").textContent = ready
      ? `With the ${name}, the loss is ${network.loss.toFixed(4)}, and ${whole(network.errorRate * network.count)} of the ${network.count} images are misread.`
      : `Computing the loss of the ${name} …`;
  }

  async function chooseState(key) {
    chosen.state = key;
    showState();
    paintMap();
    showMasks();
    finished = computePath();
    const mine = job;
    while (mine === job && state().network.prepared < labels.length) await pause();
    showState();
  }

  function redraw() {
    readPalette();
    map.fit();
    paintMap();
    for (const { cells } of drawings) cells.fit();
    buildErrors();
    drawPath();
    showMasks();
  }

  function listen() {
    for (const radio of document.querySelectorAll("[name=state]")) radio.addEventListener("change", () => chooseState(radio.value));
    for (const radio of document.querySelectorAll("[name=criterion]")) {
      radio.addEventListener("change", () => {
        chosen.criterion = radio.value;
        showMasks();
      });
    }
    element("layer").addEventListener("change", () => pick(Number(element("layer").value), 0));
    element("colour").addEventListener("change", () => {
      chosen.colour = element("colour").value;
      paintMap();
    });
    element("map").dataset.picks = "";
    element("map").addEventListener("click", (event) => {
      const index = map.indexAt(event);
      if (index >= 0) pick(chosen.tensor, index);
    });
    element("pick-snip").addEventListener("click", () => pickLargest(state().values.snip));
    element("pick-exact").addEventListener("click", () => pickLargest(state().values.exact));
    element("pick-gap").addEventListener("click", () => pickLargest(state().values.gap));
    element("pick-random").addEventListener("click", () => {
      const [first, stop] = range();
      pickAt(first + Math.floor(Math.random() * (stop - first)));
    });
    element("factor").addEventListener("input", () => {
      chosen.step = Number(element("factor").value);
      if (path.done) showPath();
      else drawPath();
    });
    element("sparsity").addEventListener("input", () => setSparsity(STOPS[Number(element("sparsity").value)], "slider"));
    element("sparsity-number").addEventListener("change", () => {
      const typed = Number(element("sparsity-number").value);
      setSparsity(Number.isFinite(typed) ? Math.round(typed * 10000) : chosen.sparsity);
    });
    element("numbers").addEventListener("toggle", showNumbers);
    let resized = 0;
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return; // a phone's bars come and go
      width = window.innerWidth;
      cancelAnimationFrame(resized);
      resized = requestAnimationFrame(redraw);
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  function begin() {
    element("explorer").hidden = false;
    readPalette();
    element("layer").replaceChildren(...tensors.map(({ label }, t) => make("option", { value: t }, label)));
    element("sparsity").max = String(STOPS.length - 1);
    const checked = document.querySelector("[name=state]:checked");
    if (checked) chosen.state = checked.value; // a browser may remember it
    const shown = document.querySelector("[name=criterion]:checked");
    if (shown) chosen.criterion = shown.value;
    element("factor").value = String(STEPS);
    element("colour").value = chosen.colour;
    map = new Cells(element("map"), layoutOf(tensors[chosen.tensor]), 20);
    buildCounts();
    buildErrorTable();
    buildDrawings();
    buildErrors();
    computeKept();
    setSparsity(chosen.sparsity);
    listen();
    showPicker(true);
    element("stay").checked = true;
    pickLargest(state().values.gap); // of conv 1
    element("stay").checked = false;
    return chooseState(chosen.state);
  }

  /** For tests: what the page computes, without its drawings. */
  window.explorer = {
    ready: begin(),
    finished: () => finished,
    loss: (key) => states[key].network.prepare() && states[key].network.loss,
    change: (key, name, index) => states[key].network.prepare() && states[key].network.change(TENSORS.findIndex((t) => t.name === name), index),
    derivatives: (key, name, index) => states[key].network.prepare() && states[key].network.derivatives(TENSORS.findIndex((t) => t.name === name), index),
    kept: (key, criterion, sparsity) => Array.from(states[key].order[criterion], (rank) => Number(rank < numKept(Math.round(sparsity * 10000)))),
  };
})();
