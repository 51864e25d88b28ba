// @ts-check
// Training in the page: controls, the loss as it falls over the record's curve, answers before and after.
// Nothing is loaded before "Train" is pressed; then four scripts of this site are, which also works from a disk.
// A page that brings its own button has the small form: the first setting and the loss alone. There `book.js` loads
// this script, too, when the button is pressed.
(() => {
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SMOOTH = 5; // steps of a running mean
const HIGHEST = 8; // nats on the axis
const FREE = "no record";
const PATIENCE = 1000; // milliseconds for a browser to say whether it has a graphics processor
const ASLEEP = 30; // seconds between two steps, after which a reader is told

/** @typedef {{ ends: number, first: number, last: number }} Rule */

/**
 * What the page says of a training and its record: the same, by the study's rule, or not.
 * @param {number[]} own
 * @param {number[]} recorded
 * @param {Rule} rule
 */
function agreement(own, recorded, { ends, first, last }) {
  const apart = Math.max(...own.slice(0, ends).map((loss, at) => Math.abs(loss - recorded[at])));
  const mean = (/** @type {number[]} */ curve) => curve.slice(-ends).reduce((sum, loss) => sum + loss, 0) / ends;
  const drift = Math.abs(mean(own) - mean(recorded));
  return { apart, drift, agrees: own.length === recorded.length && apart <= first && drift <= last };
}

/** @param {number[]} curve */
function smoothed(curve) {
  return curve.map((_, at) => {
    const part = curve.slice(Math.max(0, at - SMOOTH + 1), at + 1);
    return part.reduce((sum, loss) => sum + loss, 0) / part.length;
  });
}

/** Lowest and highest of several curves at each step that all have. @param {number[][]} curves */
function band(curves) {
  const length = Math.min(...curves.map((curve) => curve.length));
  return Array.from({ length }, (_, at) => {
    const here = curves.map((curve) => curve[at]);
    return [Math.min(...here), Math.max(...here)];
  });
}

/**
 * A plan with as many steps, of another number of rows each: the same rows in the same order, from the start again after the last.
 * @param {number[][]} plan
 * @param {number} rows
 */
function batches(plan, rows) {
  const order = plan.flat();
  return plan.map((_, step) => Array.from({ length: rows }, (__, at) => order[(step * rows + at) % order.length]));
}

/** The bytes behind the characters in which a byte-level vocabulary is written. */
function byteOf() {
  const table = /** @type {Record<string, number>} */ ({});
  const plain = (/** @type {number} */ byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  for (let byte = 0; byte < 256; byte += 1) {
    table[String.fromCharCode(plain(byte) ? byte : next)] = byte;
    if (!plain(byte)) next += 1;
  }
  return table;
}

/** @param {number[]} ids @param {string[]} tokens */
function textOf(ids, tokens) {
  const table = byteOf(), characters = [...ids.map((id) => tokens[id]).join("")];
  return new TextDecoder().decode(Uint8Array.from(characters, (each) => table[each] ?? 32)).replace(/\s+/g, " ").trim();
}

if (typeof module !== "undefined") module.exports = { agreement, band, batches, smoothed, textOf };
if (typeof document === "undefined") return;

// ---- small parts of a page

/** @param {string} name @param {Record<string, string | number>} attributes @param {...(Node | string)} children */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/** @param {Element} parent @param {string} name @param {Record<string, string | number>} attributes @param {string} [text] */
function mark(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

/** @param {number} value */
const grouped = (value) => value.toLocaleString("en-GB");
/** @param {number} bytes */
const size = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
/** @param {number} value */
const rateText = (value) => String(Number(value.toPrecision(3)));
/** @param {number} value */
const small = (value) => (value < 1e-6 ? "less than 0.000001" : value.toPrecision(2));

/** Load a script of the site once. @type {Map<string, Promise<any>>} */
const scripts = new Map();

/** @param {string} folder @param {string} name @returns {Promise<any>} what the script has left in `peftbookLive` */
function loaded(folder, name) {
  const kept = scripts.get(name);
  if (kept) return kept;
  const coming = new Promise((resolve, reject) => {
    const script = element("script", { src: `${folder}${name}.js` });
    script.addEventListener("error", () => reject(new Error(`The file ${name}.js could not be loaded.`)));
    script.addEventListener("load", () => {
      const found = /** @type {any} */ (globalThis).peftbookLive?.[name];
      if (found) resolve(found);
      else reject(new Error(`The file ${name}.js came incomplete.`));
    });
    document.head.append(script);
  });
  scripts.set(name, coming);
  coming.catch(() => scripts.delete(name)); // so that pressing again tries again
  return coming;
}

/**
 * What a worker's script begins with where the browser has a graphics processor, that is none of software; else nothing.
 * @param {string} folder
 * @returns {Promise<string>}
 */
async function graphics(folder) {
  try {
    const patience = new Promise((resolve) => { setTimeout(resolve, PATIENCE); });
    const adapter = await Promise.race([/** @type {any} */ (navigator).gpu?.requestAdapter(), patience]);
    return adapter && !adapter.info?.isFallbackAdapter ? await loaded(folder, "webgpu") : "";
  } catch {
    return "";
  }
}

/** @param {HTMLElement} place */
function put(place) {
  const numbers = JSON.parse(/** @type {HTMLElement} */ (place.querySelector('script[type="application/json"]')).textContent ?? "");
  const folder = place.dataset.live ?? "", calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const form = element("div", { class: "explorer-controls" });

  const field = (/** @type {string} */ label, /** @type {HTMLElement} */ input) => form.append(element("label", {}, element("span", {}, label), input));
  const select = (/** @type {string} */ label, /** @type {[string, string][]} */ options, /** @type {string} */ start) => {
    const made = /** @type {HTMLSelectElement} */ (element("select"));
    for (const [value, text] of options) made.append(element("option", value === start ? { value, selected: "" } : { value }, text));
    field(label, made);
    return made;
  };
  const same = (/** @type {(string | number)[]} */ values) => /** @type {[string, string][]} */ (values.map((each) => [String(each), String(each)]));
  const arms = Object.entries(numbers.arms);
  const method = select("Method", arms.map(([name, arm]) => [name, /** @type {any} */ (arm).label]), numbers.chosen);
  const rate = select("Rate", [], "");
  const rank = select("Rank", same(numbers.ranks), "16"), alpha = select("α", same(numbers.alphas), "32");
  const targets = select("Matrices", Object.keys(numbers.targets).map((name) => [name, name]), "all");
  const steps = select("Steps", [["0", "all, about 100"], ...same(numbers.steps)], "0");
  const batch = select("Batch", same(numbers.batches), String(numbers.batch));
  const seed = select("Seed", same(numbers.seeds), "1");
  const bare = place.querySelector(".explorer") !== null;
  const box = /** @type {HTMLElement} */ (place.querySelector(".explorer") ?? element("div", { class: "explorer" }));
  const train = /** @type {HTMLButtonElement} */ (box.querySelector("button") ?? element("button", { type: "button", class: "live-train" }, "Train"));
  const stop = /** @type {HTMLButtonElement} */ (element("button", { type: "button", disabled: "" }, "Stop"));
  const cost = element("p", { class: "live-cost" }), now = element("p", { class: "live-now", "aria-hidden": "true" });
  const says = /** @type {HTMLElement} */ (box.querySelector("[role=status]") ?? element("p", { class: "explorer-says", role: "status" }));
  const stage = element("div", { class: "explorer-stage" }), answers = element("div", { class: "live-answers" });
  if (bare) {
    train.after(stop);
    says.before(now, stage);
  } else {
    box.append(form, element("p", { class: "live-buttons" }, train, stop), cost, now, stage, says, answers);
    /** @type {HTMLElement} */ (place.querySelector(".live-without")).before(box);
  }
  place.classList.add("live-on");

  const arm = () => numbers.arms[method.value];
  const adapts = () => arm().choice.method === "lora";

  /** Whether records were made with these settings, of some rates and seeds. */
  const onGrid = () => steps.value === "0" && batch.value === String(numbers.batch) && (!adapts() || (rank.value === "16" && alpha.value === "32" && targets.value === "all"));
  const isRecorded = () => onGrid() && seed.value in (numbers.recorded[method.value][rate.value] ?? {});

  function rates() {
    const kept = arm().rates.map(String), lowest = Math.min(...arm().rates);
    const chosen = String(arm().rates[0]);
    const all = Array.from({ length: 7 }, (_, at) => rateText(lowest * 2 ** (at - 1)));
    rate.replaceChildren(...all.map((value) => element("option", value === chosen ? { value, selected: "" } : { value },
      kept.includes(value) ? value : `${value} (${FREE})`)));
  }

  /** Numbers that the chosen method trains. */
  function count() {
    if (!adapts()) return arm().trained;
    const names = /** @type {string[]} */ (numbers.targets[targets.value]);
    return numbers.layers * Number(rank.value) * names.reduce((sum, name) => sum + numbers.sides[name][0] + numbers.sides[name][1], 0);
  }

  function tell() {
    for (const each of [rank, alpha, targets]) each.disabled = !adapts();
    const trained = count(), { base } = arm();
    cost.textContent = `Trains ${grouped(trained)} numbers, whose values, gradients and moments take ${size(16 * trained)}. ` +
      `Pressing Train loads ${size(numbers.bytes.engine + numbers.bytes.data + numbers.bytes[base])} from this site, once. ` +
      (isRecorded() ? "A record of PyTorch has these settings." : "No record has these settings.");
  }

  method.addEventListener("input", rates);
  form.addEventListener("input", tell);
  rates();
  tell();

  // ---- the drawing

  const width = Math.max(300, Math.min(640, box.clientWidth || 640)), height = 250, left = 34, bottom = height - 52;
  const svg = mark(stage, "svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });

  /** @param {number[]} own @param {number[][]} others @param {number[] | undefined} recorded @param {number} length */
  function draw(own, others, recorded, length) {
    svg.replaceChildren();
    const x = (/** @type {number} */ step) => left + (step / Math.max(1, length - 1)) * (width - left - 8);
    const y = (/** @type {number} */ loss) => bottom - (Math.min(loss, HIGHEST) / HIGHEST) * (bottom - 26);
    for (let loss = 0; loss <= HIGHEST; loss += 2) {
      mark(svg, "line", { x1: left, x2: width - 8, y1: y(loss), y2: y(loss), class: "explorer-grid" });
      mark(svg, "text", { x: left - 6, y: y(loss) + 4, "text-anchor": "end" }, String(loss));
    }
    mark(svg, "text", { x: 2, y: 12 }, "loss, nats per token, mean of five steps");
    mark(svg, "text", { x: width - 8, y: bottom + 18, "text-anchor": "end" }, `step, of ${length}`);
    const line = (/** @type {number[]} */ curve) => smoothed(curve).map((loss, at) => `${x(at).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
    if (others.length > 1) {
      const edges = band(others.map(smoothed));
      const there = edges.map(([low], at) => `${x(at).toFixed(1)},${y(low).toFixed(1)}`), back = edges.map(([, high], at) => `${x(at).toFixed(1)},${y(high).toFixed(1)}`).reverse();
      mark(svg, "polygon", { points: [...there, ...back].join(" "), class: "live-band" });
    }
    if (own.length) mark(svg, "polyline", { points: line(own), class: "explorer-line" });
    if (recorded) mark(svg, "polyline", { points: line(recorded), class: "live-record" }); // over the line that it should hide
    if (own.length) mark(svg, "circle", { cx: x(own.length - 1), cy: y(smoothed(own)[own.length - 1]), r: 4, class: "explorer-point" });
    const key = [["explorer-line", "this page"], ...(recorded ? [["live-record", "the record"]] : []), ...(others.length > 1 ? [["live-band", `its ${others.length} seeds`]] : [])];
    key.forEach(([look, text], at) => {
      const from = 4 + at * Math.min(120, width / 3.1);
      mark(svg, look === "live-band" ? "rect" : "line", look === "live-band"
        ? { x: from, y: height - 16, width: 18, height: 9, class: look } : { x1: from, x2: from + 18, y1: height - 11, y2: height - 11, class: look });
      mark(svg, "text", { x: from + 23, y: height - 7 }, text);
    });
  }

  draw([], [], undefined, 100);

  const spectrum = mark(stage, "svg", { viewBox: `0 0 ${width} 110`, "aria-hidden": "true", hidden: "" });

  /** Bars of the singular values, the largest first. @param {number[]} values @param {string} matrix */
  function drawSpectrum(values, matrix) {
    spectrum.replaceChildren();
    spectrum.toggleAttribute("hidden", values.length === 0);
    const most = Math.max(...values, 1e-9), each = (width - left - 8) / Math.max(8, values.length);
    mark(spectrum, "text", { x: 2, y: 12 }, `singular values of the update${width < 480 ? "" : ` of ${matrix}`}, the largest ${most.toPrecision(2)}`);
    mark(spectrum, "line", { x1: left, x2: width - 8, y1: 100, y2: 100, class: "explorer-grid" });
    values.forEach((value, at) => {
      const high = (value / most) * 76;
      mark(spectrum, "rect", { x: left + at * each + 1, y: 100 - high, width: Math.max(2, each - 3), height: high, class: "live-bar" });
    });
  }

  // ---- a training

  /** @type {Worker | undefined} */
  let worker;

  function busy(/** @type {boolean} */ on) {
    for (const each of form.querySelectorAll("select")) /** @type {HTMLSelectElement} */ (each).disabled = on;
    train.disabled = on;
    stop.disabled = !on;
    if (!on) tell();
  }

  function failed(/** @type {string} */ message) {
    worker?.terminate();
    worker = undefined;
    now.textContent = "";
    says.textContent = `Training did not go on: ${message} The rest of the page, and the records, are as they were; another setting or another try may do.`;
    busy(false);
  }

  async function press() {
    busy(true);
    answers.replaceChildren();
    drawSpectrum([], "");
    now.textContent = "";
    says.textContent = "Loading.";
    const { base, choice } = arm(), name = method.value, which = seed.value, pressed = performance.now();
    try {
      const [before, engine, data, file] = await Promise.all([worker ? "" : graphics(folder), loaded(folder, "engine"), loaded(folder, "data"), loaded(folder, base)]);
      const own = data.plans[which], all = batch.value === String(numbers.batch) ? own : batches(own, Number(batch.value)), plan = steps.value === "0" ? all : all.slice(0, Number(steps.value));
      const curves = onGrid() ? data.curves[name][rate.value] ?? {} : {};
      const recorded = /** @type {number[] | undefined} */ (curves[which]), others = /** @type {number[][]} */ (Object.values(curves));
      const settings = {
        choice: { ...choice, ...(adapts() ? { rank: Number(rank.value), alpha: Number(alpha.value), targets: numbers.targets[targets.value] } : {}), start: data.starts[which] },
        rate: Number(rate.value), steps: plan.length, seed: Number(which), plan,
      };
      draw([], others, recorded, plan.length);
      worker ??= new Worker(URL.createObjectURL(new Blob([before, engine], { type: "text/javascript" })));
      worker.onerror = (event) => failed(event.message ?? "the worker stopped.");
      worker.onmessage = follow(data, others, recorded, plan.length, pressed, onGrid() ? data.right[name][rate.value]?.[which] : undefined);
      const questions = bare ? [] : data.questions.map((/** @type {any} */ one) => one.ids);
      worker.postMessage({ kind: "train", task: data.task, base, file, levels: data.levels, settings, questions, limit: data.limit });
    } catch (error) {
      failed(/** @type {Error} */ (error).message);
    }
  }

  /** What to do with the worker's messages. @param {any} data @param {number[][]} others @param {number[] | undefined} recorded @param {number} length @param {number} pressed @param {number[] | undefined} right the record's right answers, and of how many */
  function follow(data, others, recorded, length, pressed, right) {
    /** @type {number[]} */
    const own = [], names = /** @type {string[]} */ (numbers.targets[targets.value]);
    const matrix = `${names.includes("v") ? "v" : names[0]} in the last layer`;
    let values = /** @type {number[]} */ ([]);
    let heard = pressed;
    const seconds = /** @type {number[]} */ ([]), told = /** @type {Record<string, number[][]>} */ ({});
    return (/** @type {MessageEvent} */ { data: message }) => {
      if (message.kind === "failed") failed(message.message);
      if (message.kind === "answers") {
        told[message.when] = message.answers;
        show(data, told);
      }
      if (message.kind === "step") {
        own.push(message.loss);
        seconds.push(message.seconds);
        if (own.length === 1) place.dataset.firstPoint = String((performance.now() - pressed) / 1000);
        const recent = seconds.slice(-8).sort((a, b) => a - b), each = recent[Math.floor(recent.length / 2)];
        const rest = Math.ceil(each * (length - own.length));
        now.textContent = `Step ${own.length} of ${length}, loss ${message.loss.toFixed(3)}, ${each.toFixed(2)} s a step, about ${rest} s left`;
        const silent = (performance.now() - heard) / 1000;
        heard = performance.now();
        if (own.length === 1 || own.length % 25 === 0) says.textContent = `Step ${own.length} of ${length}: the loss is ${message.loss.toFixed(2)} nats per token.`;
        if (own.length > 1 && silent > ASLEEP) says.textContent = `Nothing came for ${Math.round(silent)} s: the browser had put the tab to sleep. Training went on where it was, at step ${own.length}.`;
        if (message.spectrum && !bare) {
          values = message.spectrum;
          drawSpectrum(values, matrix);
        }
        if (!calm || own.length % 10 === 0 || own.length === length) draw(own, others, recorded, length);
      }
      if (message.kind === "done") {
        now.textContent = "";
        says.textContent = verdict(own, recorded, message.steps < length) + (right ? ` The record answers ${right[0]} of ${right[1]} test messages with the right team.` : "") + firstShare(values, matrix) + (message.by ? ` Trained by ${message.by}.` : "");
        place.dataset.steps = String(message.steps);
        busy(false);
      }
    };
  }

  /** How much of the update lies in its first direction. @param {number[]} values @param {string} matrix */
  function firstShare(values, matrix) {
    const total = values.reduce((sum, value) => sum + value ** 2, 0);
    return values.length > 1 && total > 0 ? ` Of the update of ${matrix}, ${Math.round((100 * values[0] ** 2) / total)} % of the squared norm lie in the first of ${values.length} directions.` : "";
  }

  /** @param {number[]} own @param {number[] | undefined} recorded @param {boolean} stopped */
  function verdict(own, recorded, stopped) {
    const end = smoothed(own)[own.length - 1], rule = /** @type {Rule} */ (numbers.rule);
    const fell = own.length ? `From ${own[0].toFixed(2)} to ${end.toFixed(2)} nats per token in ${own.length} steps. ${end > own[0] ? "It rose: take a lower rate. " : ""}` : "";
    if (stopped) return `${fell}Stopped before its end, so that it is not compared.`;
    if (!recorded) return `${fell}There is no record with these settings to compare.`;
    const { apart, drift, agrees } = agreement(own, recorded, rule);
    const parted = !agrees && apart <= rule.first ? " Both began alike and then parted: at a high rate rounding grows that fast, and PyTorch parts from itself if it adds in another order." : "";
    return `${fell}This ${agrees ? "agrees" : "does not agree"} with the record. The first ${rule.ends} losses are at most ${small(apart)} apart (rule: ${rule.first}), ` +
      `the means of the last ${rule.ends} ${small(drift)} (rule: ${rule.last}).${parted}`;
  }

  /** @param {any} data @param {Record<string, number[][]>} told */
  function show(data, told) {
    const cell = (/** @type {number[] | undefined} */ ids, /** @type {string} */ target) => {
      const text = ids ? textOf(ids, data.tokens) : "";
      return element("td", text === target ? { class: "live-right" } : {}, ids ? text || "(nothing)" : "…", ...(text === target ? [" ✓"] : []));
    };
    const rows = data.questions.map((/** @type {any} */ one, /** @type {number} */ at) => element("tr", {}, element("th", { scope: "row" }, one.text),
      element("td", {}, one.target), cell(told.before?.[at], one.target), cell(told.after?.[at], one.target)));
    const head = element("tr", {}, ...["Test message", "Right", "Before", "After"].map((text) => element("th", { scope: "col" }, text)));
    answers.replaceChildren(element("table", { class: "table" }, element("caption", {}, "What the model answers"), element("thead", {}, head), element("tbody", {}, ...rows)));
  }

  train.addEventListener("click", press);
  if (bare) press(); // its button has been pressed
  stop.addEventListener("click", () => {
    stop.disabled = true;
    says.textContent = "Stopping after this step.";
    worker?.postMessage({ kind: "stop" });
  });
}

for (const place of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-live]:not(.live-on)"))) put(place);
})();
