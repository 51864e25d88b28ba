// Interactive figures. Each reads the numbers that its figure carries, and draws what the reader's choice makes of them.
// Without this script the figure itself is shown. Nothing is fetched.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function mark(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

/** A drawing as wide as its place on the page; hidden from screen readers, which get the sentence below it. */
function drawing(stage, height) {
  const svg = document.createElementNS(SVG, "svg"), width = Math.max(300, Math.min(640, stage.clientWidth || 640));
  svg.setAttribute("viewBox", `0 0 ${width} ${height(width)}`);
  svg.setAttribute("aria-hidden", "true");
  stage.append(svg);
  return [svg, width];
}

/** A slider over a list of values. */
function slider(controls, label, values, start, write = String) {
  const input = element("input", { type: "range", min: 0, max: values.length - 1, step: 1, value: values.indexOf(start) });
  const shown = element("output");
  controls.append(element("label", {}, element("span", {}, label), input, shown));
  return {
    input,
    get value() { return values[Number(input.value)]; },
    tell() {
      shown.textContent = write(this.value);
      input.setAttribute("aria-valuetext", shown.textContent);
    },
  };
}

function choice(controls, label, options, start) {
  const select = element("select");
  for (const option of options) select.append(element("option", option === start ? { selected: "" } : {}, option));
  controls.append(element("label", {}, element("span", {}, label), select));
  return { input: select, get value() { return select.value; }, tell() {} };
}

/** Call `draw` now and whenever a control changes. */
function follow(parts, draw) {
  const all = () => {
    for (const part of parts) part.tell();
    draw();
  };
  for (const part of parts) part.input.addEventListener("input", all);
  all();
}

const evenly = (from, to, step) => Array.from({ length: Math.round((to - from) / step) + 1 }, (_, at) => Number((from + at * step).toFixed(6)));
const digits = (value) => (value >= 99.5 ? value.toFixed(0) : value >= 9.95 ? value.toFixed(1) : value.toFixed(2));
const grouped = (value) => Math.round(value).toLocaleString("en-GB");

// ---- quantiser: a block of weights, and what one large weight does to the others

function nearest(levels, value) {
  return levels.reduce((best, one) => (Math.abs(one - value) < Math.abs(best - value) ? one : best));
}

/** Values of a block after quantisation: absmax · nearest level of w / absmax. */
export function quantised(weights, levels) {
  const largest = Math.max(...weights.map(Math.abs));
  return weights.map((each) => largest * nearest(levels, each / largest));
}

function quantiser(numbers, controls, stage, say) {
  const code = choice(controls, "Codebook", Object.keys(numbers.levels), "NF4");
  const outlier = slider(controls, "One weight", evenly(0, 12, 0.1), 2.5, (each) => each.toFixed(1));
  const [svg, width] = drawing(stage, () => 250);
  follow([code, outlier], () => {
    svg.replaceChildren();
    const levels = numbers.levels[code.value], weights = [outlier.value, ...numbers.weights.slice(1)];
    const snapped = quantised(weights, levels), largest = Math.max(...weights.map(Math.abs));
    const x = (each) => width / 2 + (each / largest) * (width / 2 - 12);
    for (const level of levels) mark(svg, "line", { x1: x(level * largest), x2: x(level * largest), y1: 40, y2: 200, class: "explorer-level" });
    mark(svg, "text", { x: 4, y: 20 }, `the levels of ${code.value}, as far as ± ${digits(largest)}`);
    weights.forEach((each, at) => {
      const y = 52 + (at / (weights.length - 1)) * 136;
      mark(svg, "line", { x1: x(each), x2: x(snapped[at]), y1: y, y2: y, class: "explorer-error" });
      mark(svg, "circle", { cx: x(each), cy: y, r: at ? 3 : 6, class: at ? "explorer-dot" : "explorer-point" });
    });
    const steps = largest > 6 ? 4 : largest > 3 ? 2 : 1;
    for (const each of evenly(-12, 12, steps).filter((one) => Math.abs(one) <= largest)) {
      mark(svg, "text", { x: x(each), y: 222, "text-anchor": "middle" }, String(each).replace("-", "−"));
    }
    mark(svg, "text", { x: width / 2, y: 242, "text-anchor": "middle" }, "weight");
    const others = weights.slice(1), error = Math.sqrt(others.reduce((sum, each, at) => sum + (each - snapped[at + 1]) ** 2, 0) / others.length);
    const used = new Set(snapped.slice(1).map((each) => each.toFixed(6))).size;
    say(`The other ${others.length} weights lie on ${used} of ${levels.length} levels, and their error is ${error.toFixed(3)} (root of the mean square; their own size is about 1).`);
  });
}

// ---- rank: parameters against what a low rank leaves out

/** Share of the squared norm beyond rank r of singular values i^−p, i = 1 … n. */
export function left(n, rank, power) {
  let within = 0, total = 0;
  for (let index = 1; index <= n; index += 1) {
    const square = index ** (-2 * power);
    total += square;
    if (index <= rank) within += square;
  }
  return 1 - within / total;
}

export function parameters(model, targets, rank) {
  return model.layers * rank * targets.reduce((sum, name) => sum + model.linears[name][0] + model.linears[name][1], 0);
}

function rank(numbers, controls, stage, say) {
  const model = choice(controls, "Model", Object.keys(numbers.models), "SmolLM2-135M");
  const targets = choice(controls, "Matrices", Object.keys(numbers.targets), "all");
  const size = slider(controls, "Rank", evenly(1, 256, 1), 16);
  const power = slider(controls, "Fall of the spectrum", evenly(0, 2, 0.05), 0.8, (each) => each.toFixed(2));
  const [svg, wide] = drawing(stage, () => 216);
  follow([model, targets, size, power], () => {
    svg.replaceChildren();
    const one = numbers.models[model.value], width = Math.min(...one.linears.q_proj);
    const x = (index) => 44 + (Math.log(index) / Math.log(width)) * (wide - 64), y = (share) => 186 - share * 160;
    for (const index of [1, 4, 16, 64, 256, 1024, 4096].filter((each) => each <= width)) {
      mark(svg, "line", { x1: x(index), x2: x(index), y1: 22, y2: 186, class: "explorer-grid" });
      mark(svg, "text", { x: x(index), y: 205, "text-anchor": "middle" }, index);
    }
    for (const share of [0, 0.5, 1]) mark(svg, "text", { x: 38, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`);
    mark(svg, "text", { x: 4, y: 12 }, `left out of the update, against the rank (of ${grouped(width)})`);
    const ranks = Array.from({ length: 80 }, (_, at) => Math.round(width ** (at / 79)));
    mark(svg, "polyline", { points: ranks.map((each) => `${x(each)},${y(left(width, each, power.value))}`).join(" "), class: "explorer-line" });
    const trained = parameters(one, numbers.targets[targets.value], size.value), share = left(width, size.value, power.value);
    mark(svg, "circle", { cx: x(size.value), cy: y(share), r: 6, class: "explorer-point" });
    say(`Rank ${size.value} trains ${grouped(trained)} numbers, as many as ${((100 * trained) / one.parameters).toFixed(2)} % of the weights of ${model.value}, and takes ${digits((4 * trained) / 1e6)} MB in float32. ` +
      `If the singular values of the needed update fall like i to the power −${power.value.toFixed(2)}, it leaves out ${(100 * share).toFixed(1)} % of the squared norm.`);
  });
}

// ---- put them in place

const EXPLORERS = { quantiser, rank };

function place(figure) {
  const numbers = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
  const stage = element("div", { class: "explorer-stage" }), controls = element("div", { class: "explorer-controls" });
  const sentence = element("p", { class: "explorer-says", "aria-live": "polite" });
  figure.querySelector("figcaption").before(element("div", { class: "explorer" }, controls, stage, sentence));
  EXPLORERS[figure.dataset.explorer](numbers, controls, stage, (text) => { sentence.textContent = text; });
  figure.classList.add("explorer-live");
}

if (typeof document !== "undefined") {
  for (const figure of document.querySelectorAll("figure[data-explorer]:not(.explorer-live)")) place(figure);
}
