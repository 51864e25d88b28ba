// @ts-check
// Training in the page: controls, the losses of runs as they fall, answers before and after, a guess that is scored.
// Nothing is loaded before "Train" is pressed; then four scripts of this site are, which also works from a disk.
// The small form has no controls but those, and `book.js` loads this script, too, when its button is pressed.
(() => {
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SMOOTH = 5; // steps of a running mean
const TICKS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10]; // nats on the axis, which is logarithmic
const LOOKS = 6; // of lines that lie over each other
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

/** Wilson's 95 % interval of a share. @param {number} right @param {number} of @returns {[number, number]} */
function wilson(right, of) {
  const square = 1.959964 ** 2, share = right / of, middle = share + square / (2 * of);
  const half = Math.sqrt(square * (share * (1 - share) / of + square / (4 * of * of)));
  return [(middle - half) / (1 + square / of), (middle + half) / (1 + square / of)];
}

/** Right answers in words. @param {number} right @param {number} of */
function counted(right, of) {
  const [low, high] = wilson(right, of).map((share) => Math.round(100 * share));
  return `${right} of ${of} right (${Math.round((100 * right) / of)} %, interval ${low} to ${high} %)`;
}

/** The characters in which a byte-level vocabulary is written, by byte. */
function characters() {
  const plain = (/** @type {number} */ byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(plain(byte) ? byte : next++));
}

/** @param {number[]} ids @param {string[]} tokens */
function textOf(ids, tokens) {
  const table = characters(), bytes = [...ids.map((id) => tokens[id]).join("")].map((each) => table.indexOf(each));
  return new TextDecoder().decode(Uint8Array.from(bytes, (byte) => (byte < 0 ? 32 : byte))).replace(/\s+/g, " ").trim();
}

/** Token ids of a text: in each word the two neighbours whose union came first into the vocabulary become one. @param {string} text @param {string[]} tokens */
function idsOf(text, tokens) {
  const table = characters(), ranks = new Map(tokens.map((token, id) => [token, id]));
  const words = text.match(/'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu) ?? [];
  return words.flatMap((word) => {
    const parts = Array.from(new TextEncoder().encode(word), (byte) => table[byte]);
    for (;;) {
      const unions = parts.slice(1).map((part, at) => ranks.get(parts[at] + part) ?? Infinity), least = Math.min(...unions);
      if (least === Infinity) return parts.map((part) => /** @type {number} */ (ranks.get(part)));
      const at = unions.indexOf(least);
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  });
}

if (typeof module !== "undefined") module.exports = { agreement, band, batches, idsOf, smoothed, textOf, wilson };
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

/**
 * A run of the page. settings: the value of each control.  name: for a reader.  own: its losses so far.  length: its steps.
 * recorded, others: the record's curve and those of all its seeds.  right: the record's right answers.
 * @typedef {{ settings: Record<string, string>, name: string, look: number, own: number[], length: number, recorded?: number[], others: number[][], right?: number, says: HTMLElement }} Run
 */

/** @param {HTMLElement} place */
function put(place) {
  const find = (/** @type {string} */ which) => /** @type {any} */ (place.querySelector(which));
  const numbers = JSON.parse(find('script[type="application/json"]').textContent);
  const folder = place.dataset.live ?? "", calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const [form, train, stop, clear, ask, own, guess, cost, now, stage, list, says] = [
    ".explorer-controls", ".live-train", ".live-stop", ".live-clear", ".live-ask", ".live-own", ".live-guess", ".live-cost", ".live-now", ".explorer-stage", ".live-runs", "[role=status]",
  ].map(find);
  const cells = [...place.querySelectorAll(".live-answers tbody tr")].map((row) => [...row.querySelectorAll("td")].slice(1));
  place.classList.add("live-on");

  const first = Object.fromEntries(Object.entries(numbers.first).map(([name, value]) => [name, String(value)]));
  const selects = /** @type {Record<string, HTMLSelectElement>} */ (Object.fromEntries(Array.from(place.querySelectorAll("select"), (each) => [each.name, each])));
  /** @returns {Record<string, string>} */
  const read = () => ({ ...first, ...Object.fromEntries(Object.entries(selects).map(([name, each]) => [name, each.value])) });
  const armOf = (/** @type {Record<string, string>} */ { method }) => numbers.arms[method];
  const adapts = (/** @type {Record<string, string>} */ settings) => armOf(settings).choice.method === "lora";

  /** The key of the record with these settings, if there is one, but for its seed. @param {Record<string, string>} settings */
  const keyOf = (settings) => settings.batch === String(numbers.batch) && (!adapts(settings) || (settings.rank === "16" && settings.alpha === "32" && settings.targets === "all"))
    ? `${settings.method} ${settings.rate} ${settings.steps}` : "";
  const isRecorded = (/** @type {Record<string, string>} */ settings) => numbers.recorded.includes(`${keyOf(settings)} ${settings.seed}`);

  /** What of a run's settings is not the default, for a reader. @param {Record<string, string>} settings */
  function nameOf(settings) {
    const others = adapts(settings) ? [["rank", "rank "], ["alpha", "α "], ["targets", "on "]] : [];
    const different = [...others, ["steps", "steps "], ["batch", "batch "], ["seed", "seed "]].filter(([name]) => settings[name] !== first[name]);
    return [`${armOf(settings).label}, rate ${settings.rate}`, ...different.map(([name, word]) => word + settings[name])].join(", ");
  }

  function rates() {
    const { grid, rate, steps } = armOf(read());
    selects.rate.replaceChildren(...grid.map((/** @type {number} */ value) => element("option", { value }, String(value))));
    [selects.rate.value, selects.steps.value] = [String(rate), String(steps)];
  }

  /** Numbers that the chosen method trains. @param {Record<string, string>} settings */
  function count(settings) {
    if (!adapts(settings)) return armOf(settings).trained;
    const names = /** @type {string[]} */ (numbers.targets[settings.targets]);
    return numbers.layers * Number(settings.rank) * names.reduce((sum, name) => sum + numbers.sides[name][0] + numbers.sides[name][1], 0);
  }

  function tell() {
    if (!form) return;
    const settings = read(), trained = count(settings);
    for (const name of ["rank", "alpha", "targets"]) selects[name].disabled = !adapts(settings);
    cost.textContent = `Trains ${grouped(trained)} numbers, whose values, gradients and moments take ${size(16 * trained)}. ` +
      `Pressing Train loads ${size(numbers.bytes.engine + numbers.bytes.data + numbers.bytes[armOf(settings).base])} from this site, once. ` +
      (isRecorded(settings) ? "A record of PyTorch has these settings." : "No record has these settings.");
  }

  if (form) {
    selects.method.addEventListener("input", rates);
    form.addEventListener("input", tell);
    rates();
    tell();
  }

  // ---- the drawing

  /** @type {Run[]} */ let runs = [];
  const width = Math.max(300, stage.clientWidth || 640), height = 250, left = 38, bottom = height - 36;
  const svg = mark(stage, "svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const [lowest, highest] = [TICKS[0], TICKS[TICKS.length - 1]].map(Math.log);

  function draw() {
    svg.replaceChildren();
    const longest = Math.max(100, ...runs.map((run) => run.length)), latest = runs[runs.length - 1];
    const x = (/** @type {number} */ step) => left + (step / (longest - 1)) * (width - left - 12);
    const y = (/** @type {number} */ loss) => bottom - ((Math.min(Math.max(Math.log(loss), lowest), highest) - lowest) / (highest - lowest)) * (bottom - 26);
    for (const loss of TICKS) {
      mark(svg, "line", { x1: left, x2: width - 12, y1: y(loss), y2: y(loss), class: "explorer-grid" });
      mark(svg, "text", { x: left - 6, y: y(loss) + 4, "text-anchor": "end" }, String(loss));
    }
    for (let step = 0; step <= longest; step += longest > 110 ? 50 : 25) {
      if (step) mark(svg, "line", { x1: x(step - 1), x2: x(step - 1), y1: bottom, y2: bottom + 5, class: "live-tick" });
      mark(svg, "text", { x: x(Math.max(0, step - 1)), y: bottom + 18, "text-anchor": "middle" }, String(step || 1));
    }
    mark(svg, "text", { x: 2, y: 12 }, "loss, nats per token, mean of five steps (logarithmic)");
    mark(svg, "text", { x: width - 12, y: height - 3, "text-anchor": "end" }, "step");
    const points = (/** @type {number[]} */ curve) => curve.map((loss, at) => `${x(at).toFixed(1)},${y(loss).toFixed(1)}`);
    if (latest?.others.length > 1) {
      const edges = band(latest.others.map(smoothed));
      mark(svg, "polygon", { points: [...points(edges.map(([low]) => low)), ...points(edges.map(([, high]) => high)).reverse()].join(" "), class: "live-band" });
    }
    for (const { own: losses, look } of runs) if (losses.length) mark(svg, "polyline", { points: points(smoothed(losses)).join(" "), class: `explorer-line live-look-${look}` });
    if (latest?.recorded) mark(svg, "polyline", { points: points(smoothed(latest.recorded)).join(" "), class: "live-record" }); // over the line that it should hide
    if (latest?.own.length) mark(svg, "circle", { cx: x(latest.own.length - 1), cy: y(smoothed(latest.own)[latest.own.length - 1]), r: 4, class: "explorer-point" });
  }

  /** A line of the legend. @param {string} look @param {string} text */
  function key(look, text) {
    const item = element("li"), sample = mark(item, "svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }), words = element("span", {}, text);
    mark(sample, "line", { x1: 0, x2: 26, y1: 5, y2: 5, class: look });
    item.append(words);
    list.append(item);
    return words;
  }

  function legend() {
    list.replaceChildren();
    for (const run of runs) run.says = key(`explorer-line live-look-${run.look}`, run.says?.textContent || run.name);
    const latest = runs[runs.length - 1];
    if (latest?.recorded) key("live-record", `PyTorch's record of ${latest.name}${latest.others.length > 1 ? `; the band is its ${latest.others.length} seeds` : ""}`);
  }

  draw();

  const spectrum = form && mark(stage, "svg", { viewBox: `0 0 ${width} 110`, "aria-hidden": "true" });

  /** Bars of the singular values, the largest first. @param {number[]} values @param {string} matrix */
  function drawSpectrum(values, matrix) {
    if (!spectrum) return;
    spectrum.replaceChildren();
    const most = Math.max(...values, 1e-9), each = (width - left - 8) / Math.max(8, values.length);
    mark(spectrum, "text", { x: 2, y: 12 }, `singular values of the update${values.length ? `${width < 480 ? "" : ` of ${matrix}`}, the largest ${most.toPrecision(2)}` : ""}`);
    mark(spectrum, "line", { x1: left, x2: width - 8, y1: 100, y2: 100, class: "explorer-grid" });
    values.forEach((value, at) => {
      const high = (value / most) * 76;
      mark(spectrum, "rect", { x: left + at * each + 1, y: 100 - high, width: Math.max(2, each - 3), height: high, class: "live-bar" });
    });
  }

  drawSpectrum([], "");

  // ---- a training

  /** @type {Worker | undefined} */
  let worker;
  /** Settings of runs that come next. @type {Record<string, string>[]} */
  let waiting = [];
  let locked = ""; // the guess, of a single run

  function busy(/** @type {boolean} */ on) {
    for (const each of place.querySelectorAll("select, input, button")) /** @type {HTMLInputElement} */ (each).disabled = on;
    stop.disabled = !on;
    ask.disabled = on || !worker;
    if (!on) tell();
  }

  function failed(/** @type {string} */ message) {
    worker?.terminate();
    worker = undefined;
    waiting = [];
    now.textContent = "";
    says.textContent = `Training did not go on: ${message} The rest of the page, and the records, are as they were; another setting or another try may do.`;
    busy(false);
  }

  /** Fill an answer's cell. @param {number} row @param {number} column 0 before, 1 after @param {string} text @param {string} [target] */
  function answer(row, column, text, target) {
    const cell = cells[row][column], right = text === target;
    cell.className = target === undefined ? "" : right ? "live-right" : "live-wrong";
    cell.textContent = `${text || "(nothing)"}${target === undefined ? "" : right ? " ✓ right" : " ✗ wrong"}`;
  }

  /** Token ids of the reader's own message in its frame; none where there is no message, or too long a one. @param {any} data */
  function ownIds(data) {
    const text = own.value.trim(), ids = [...data.frame[0], ...idsOf(text, data.tokens), ...data.frame[1]];
    const fits = ids.length + data.limit - 1 <= data.task.length;
    if (text && !fits) says.textContent = "Your message is too long for this page: leave out some words.";
    return text && fits ? ids : undefined;
  }

  async function next() {
    const settings = waiting[0], { base, choice } = armOf(settings), pressed = performance.now();
    try {
      const [before, engine, data, file] = await Promise.all([worker ? "" : graphics(folder), loaded(folder, "engine"), loaded(folder, "data"), loaded(folder, base)]);
      const { seed, steps, batch } = settings, whole = data.plans[seed];
      const plan = (batch === String(numbers.batch) ? whole : batches(whole, Number(batch))).slice(0, data.lengths[steps]?.[seed] ?? Number(steps));
      const near = keyOf(settings), others = numbers.seeds.map((/** @type {number} */ each) => data.curves[`${near} ${each}`]).filter(Boolean);
      const asked = { choice: { ...choice, ...(adapts(settings) ? { rank: Number(settings.rank), alpha: Number(settings.alpha), targets: numbers.targets[settings.targets] } : {}), start: data.starts[seed] },
        rate: Number(settings.rate), steps: plan.length, seed: Number(seed), plan };
      const run = /** @type {Run} */ ({ settings, name: nameOf(settings), look: (runs.length ? runs[runs.length - 1].look + 1 : 0) % LOOKS, own: [], length: plan.length,
        recorded: data.curves[`${near} ${seed}`], others, right: data.right[`${near} ${seed}`] });
      runs = [...runs, run].slice(-LOOKS);
      legend();
      draw();
      worker ??= new Worker(URL.createObjectURL(new Blob([before, engine], { type: "text/javascript" })));
      worker.onerror = (event) => failed(event.message ?? "the worker stopped.");
      worker.onmessage = follow(data, run, pressed);
      const mine = ownIds(data), ids = (/** @type {any} */ one) => one.ids;
      worker.postMessage({ kind: "train", task: data.task, base, file, levels: data.levels, settings: asked, questions: [...data.questions.map(ids), ...(mine ? [mine] : [])], tests: data.tests.map(ids), limit: data.limit });
    } catch (error) {
      failed(/** @type {Error} */ (error).message);
    }
  }

  /** @param {Record<string, string>[]} settings of the runs to train, one after another */
  function press(settings) {
    waiting = settings;
    busy(true);
    for (const row of cells) for (const cell of row) [cell.textContent, cell.className] = ["…", ""];
    drawSpectrum([], "");
    locked = settings.length === 1 ? guess.value : "";
    says.textContent = `${locked ? `Your guess of ${locked} % is locked. ` : ""}Loading.`;
    next();
  }

  /** What to do with the worker's messages. @param {any} data @param {Run} run @param {number} pressed */
  function follow(data, run, pressed) {
    const names = /** @type {string[]} */ (numbers.targets[run.settings.targets]), { own: losses, length } = run;
    const matrix = `${names.includes("v") ? "v" : names[0]} in the last layer`;
    let values = /** @type {number[]} */ ([]), heard = pressed, right = -1;
    const seconds = /** @type {number[]} */ ([]);
    const text = (/** @type {number[]} */ ids) => textOf(ids, data.tokens);
    return (/** @type {MessageEvent} */ { data: message }) => {
      if (message.kind === "failed") failed(message.message);
      if (message.kind === "answers") message.answers.forEach((/** @type {number[]} */ ids, /** @type {number} */ at) => answer(at, message.when === "after" ? 1 : 0, text(ids), data.questions[at]?.target));
      if (message.kind === "asked") {
        const both = message.answers.map(text);
        both.forEach((/** @type {string} */ each, /** @type {number} */ column) => answer(cells.length - 1, column, each));
        says.textContent = `Your message: “${both[0]}” before training, “${both[1]}” after it.`;
        busy(false);
      }
      if (message.kind === "tested") right = message.answers.filter((/** @type {number[]} */ ids, /** @type {number} */ at) => text(ids) === data.tests[at].target).length;
      if (message.kind === "step") {
        losses.push(message.loss);
        seconds.push(message.seconds);
        if (losses.length === 1) place.dataset.firstPoint = String((performance.now() - pressed) / 1000);
        const recent = seconds.slice(-8).sort((a, b) => a - b), each = recent[Math.floor(recent.length / 2)];
        const rest = Math.ceil(each * (length - losses.length));
        now.textContent = `Step ${losses.length} of ${length}, loss ${message.loss.toFixed(3)}, ${each.toFixed(2)} s a step, about ${rest} s left`;
        const silent = (performance.now() - heard) / 1000;
        heard = performance.now();
        if (losses.length === 1 || losses.length % 50 === 0) says.textContent = `${run.name}, step ${losses.length} of ${length}: the loss is ${message.loss.toFixed(2)} nats per token.`;
        if (losses.length > 1 && silent > ASLEEP) says.textContent = `Nothing came for ${Math.round(silent)} s: the browser had put the tab to sleep. Training went on where it was, at step ${losses.length}.`;
        if (message.spectrum) {
          values = message.spectrum;
          drawSpectrum(values, matrix);
        }
        if (!calm || losses.length % 10 === 0 || losses.length === length) draw();
      }
      if (message.kind === "done") {
        now.textContent = "";
        place.dataset.steps = String(message.steps);
        const of = data.tests.length, stopped = message.steps < length;
        const yours = right < 0 ? "" : `${counted(right, of)}${run.right === undefined ? "" : `; PyTorch's record: ${counted(run.right, of)}`}`;
        run.says.textContent = [`${run.name}: ${stopped ? "stopped" : "ended"} at ${smoothed(losses)[losses.length - 1]?.toFixed(2)} nats`, yours].filter(Boolean).join(", ");
        waiting = stopped ? [] : waiting.slice(1);
        if (waiting.length) {
          next();
          return;
        }
        says.textContent = (yours ? `Your model has ${yours}. ` : "") + (right < 0 || stopped ? "" : scored(run.right ?? right, of, run.right !== undefined)) +
          verdict(losses, run.recorded, stopped) + (form ? firstShare(values, matrix) : "") + (message.by ? ` Trained by ${message.by}.` : "");
        busy(false);
      }
    };
  }

  /** The locked guess against an interval. @param {number} right @param {number} of @param {boolean} recorded whether the record's, else the run's own */
  function scored(right, of, recorded) {
    if (!locked) return "";
    const [low, high] = wilson(right, of).map((share) => Math.round(100 * share)), hit = Number(locked) >= low && Number(locked) <= high;
    return `Your guess of ${locked} % lies ${hit ? "inside" : "outside"} the interval of ${recorded ? "the record" : "your run"}: ${hit ? "a hit" : "a miss"}. `;
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

  train.addEventListener("click", () => press([read()]));
  for (const each of place.querySelectorAll(".live-together")) {
    const settings = numbers.together[/** @type {HTMLButtonElement} */ (each).value].map((/** @type {Record<string, any>} */ one) => Object.fromEntries(Object.entries(one).map(([name, value]) => [name, String(value)])));
    each.addEventListener("click", () => press(settings.map((/** @type {Record<string, string>} */ one) => ({ ...read(), ...one }))));
  }
  clear.addEventListener("click", () => {
    runs = [];
    legend();
    draw();
    says.textContent = "The runs are cleared.";
  });
  const askNow = async () => {
    if (ask.disabled) return;
    const data = await loaded(folder, "data"), ids = ownIds(data);
    if (!ids) return;
    busy(true);
    stop.disabled = true;
    worker?.postMessage({ kind: "ask", prompt: ids, limit: data.limit });
  };
  ask.addEventListener("click", askNow);
  own.addEventListener("keydown", (/** @type {KeyboardEvent} */ { key: pressed }) => pressed === "Enter" && askNow());
  stop.addEventListener("click", () => {
    stop.disabled = true;
    says.textContent = "Stopping after this step.";
    worker?.postMessage({ kind: "stop" });
  });
  if (!form) press([read()]); // its button has been pressed
}

for (const place of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-live]:not(.live-on)"))) put(place);
})();
