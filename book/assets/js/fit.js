// @ts-check
// Does a model fit? Controls for the options of `peftbook fit`, and its answer: a bar and a table of terms, to the byte.
// The byte model is loaded as one script of this site when the controls come into sight, which also works from a disk;
// it is the package's own code in JavaScript (`peftbook.views.site.javascript`) and runs in a worker.
(() => {
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const OWN = "config.json";
const ASSUMED = "the library’s";
const LONGEST = 1e6; // characters of a config.json
const GIB = 2 ** 30;

/** @param {string} name @param {Record<string, any>} attributes @param {...(string | Node)} children */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** @param {Element} parent @param {string} name @param {Record<string, any>} attributes @param {string} [text] */
function mark(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

const grouped = (/** @type {number} */ value) => value.toLocaleString("en-GB");
const gib = (/** @type {number} */ bytes) => `${(bytes / GIB).toFixed(3)}`;

/** The script with the byte model, once. @type {Promise<string> | undefined} */
let source;

/** @param {string} path @returns {Promise<string>} */
function load(path) {
  source ??= new Promise((resolve, reject) => {
    const script = element("script", { src: path });
    script.addEventListener("error", () => reject(new Error("The file byte-model.js could not be loaded.")));
    script.addEventListener("load", () => {
      const found = /** @type {any} */ (globalThis).peftbookByteModel;
      if (found) resolve(found);
      else reject(new Error("The file byte-model.js came incomplete."));
    });
    document.head.append(script);
  });
  source.catch(() => { source = undefined; }); // so that the next question tries again
  return source;
}

/** @param {HTMLElement} figure */
function put(figure) {
  const numbers = JSON.parse(/** @type {HTMLElement} */ (figure.querySelector('script[type="application/json"]')).textContent ?? "");
  const path = figure.dataset.fit ?? "";

  // ---- controls

  /** @type {Map<string, HTMLSelectElement | HTMLInputElement>} */
  const inputs = new Map();
  const values = new WeakMap(); // option → the value it stands for

  /** @param {string} name @param {string} label @param {[any, string][]} options */
  function control(name, label, options) {
    const start = numbers.start[name], needed = ["model", "method", "memory", "stack"].includes(name);
    let input;
    if (options.length) {
      input = /** @type {HTMLSelectElement} */ (element("select"));
      if (!needed) input.append(element("option", {}, numbers.unsaid[name] ?? ASSUMED));
      for (const [value, text] of options) {
        const option = element("option", value === start ? { selected: "" } : {}, text);
        values.set(option, value);
        input.append(option);
      }
    } else {
      input = /** @type {HTMLInputElement} */ (element("input", { type: "number", min: 1, step: 1, inputmode: "numeric", placeholder: ASSUMED, value: start ?? "" }));
    }
    if (numbers.means[name]) input.title = numbers.means[name];
    inputs.set(name, input);
    return element("label", {}, element("span", {}, label), input);
  }

  const first = element("div", { class: "explorer-controls" }, ...numbers.first.map((/** @type {[string, string, any]} */ one) => control(...one)));
  const more = element("div", { class: "explorer-controls" }, ...numbers.more.map((/** @type {[string, string, any]} */ one) => control(...one)));
  const text = /** @type {HTMLTextAreaElement} */ (element("textarea", { rows: 3, spellcheck: "false", "aria-label": "config.json", placeholder: '{"model_type": "llama", "hidden_size": 4096, …}' }));
  const file = /** @type {HTMLInputElement} */ (element("input", { type: "file", accept: ".json,application/json", "aria-label": "Choose a config.json" }));
  const own = element("details", { class: "fit-own" }, element("summary", {}, "Your own config.json"),
    element("p", {}, "Paste it, drop it here, or choose it. It stays on your machine. ", file), text);
  const others = element("details", { class: "fit-more" }, element("summary", {}, "More settings"), more);

  // ---- the answer

  const says = element("p", { class: "explorer-says", role: "status" }), stage = element("div", { class: "explorer-stage" });
  const told = element("div", { class: "fit-told", hidden: "" });
  const box = element("div", { class: "explorer fit-waiting" }, first, own, others, says, stage, told);
  /** @type {HTMLElement} */ (figure.querySelector("figcaption")).before(box);
  figure.classList.add("explorer-live");

  /** The options by their names, null for those that are the library's. */
  function question() {
    /** @type {Record<string, any>} */
    const asked = {};
    for (const [name, input] of inputs) {
      if (input instanceof HTMLSelectElement) asked[name] = values.get(input.selectedOptions[0]) ?? null;
      else asked[name] = input.value === "" && !input.validity.badInput ? null : input.valueAsNumber;
    }
    return asked;
  }

  /** Say in the controls what the library has where nothing is chosen. @param {Record<string, string>} options */
  function assume(options) {
    const asked = question();
    for (const [name, input] of inputs) {
      const said = options[name === "quant" ? "quantised" : name];
      if (asked[name] !== null || name in numbers.unsaid || said === undefined) continue;
      const words = `${said.split(" ")[1] ?? (said.startsWith("--no-") ? "off" : "on")}`, text = `${words || "none"}, ${ASSUMED}`;
      if (input instanceof HTMLInputElement) input.placeholder = text;
      else input.options[0].text = text;
    }
  }

  /** @param {Record<string, number>} terms */
  function parts(terms) {
    const names = Object.entries(/** @type {Record<string, string[]>} */ (numbers.parts));
    return names.map(([part, kinds], at) => ({ part, at, kinds: kinds.filter((kind) => kind in terms), size: kinds.reduce((sum, kind) => sum + (terms[kind] ?? 0), 0) }))
      .filter(({ size }) => size > 0);
  }

  /** @param {any} answer */
  function draw(answer) {
    const width = Math.max(300, Math.min(640, stage.clientWidth || 640)), right = width - 6, [, most] = answer.reserve_bytes;
    const shown = parts(answer.terms_bytes), columns = width < 480 ? 2 : 4, rows = Math.ceil((shown.length + 1) / columns);
    const svg = mark(stage, "svg", { viewBox: `0 0 ${width} ${94 + 20 * rows}`, "aria-hidden": "true" });
    const span = Math.max(answer.peak_bytes + most, answer.memory_bytes) * 1.02, x = (/** @type {number} */ bytes) => 2 + (bytes / span) * (right - 2);
    let from = 0;
    mark(svg, "text", { x: 2, y: 12 }, "GiB at the peak, by what they are for");
    const bar = (/** @type {number} */ bytes, /** @type {string} */ look) => {
      mark(svg, "rect", { x: x(from), y: 42, width: Math.max(0, x(from + bytes) - x(from)), height: 30, class: look });
      from += bytes;
    };
    for (const { at, size } of shown) bar(size, `fit-part-${at}`);
    bar(most, "fit-reserve");
    const line = x(answer.memory_bytes), late = line > width / 2;
    mark(svg, "line", { x1: line, x2: line, y1: 22, y2: 78, class: "explorer-limit" });
    mark(svg, "text", { x: late ? line - 6 : line + 6, y: 34, "text-anchor": late ? "end" : "start" }, `${(answer.memory_bytes / GIB).toFixed(1)} GiB card`);
    [...shown.map(({ part, at, size }) => [`fit-part-${at}`, `${part} ${(size / GIB).toFixed(size < GIB ? 2 : 1)}`]), ["fit-reserve", `beside, up to ${(most / GIB).toFixed(1)}`]].forEach(([look, words], at) => {
      const left = 2 + ((width - 4) / columns) * (at % columns), top = 86 + 20 * Math.floor(at / columns);
      mark(svg, "rect", { x: left, y: top, width: 11, height: 11, class: look });
      mark(svg, "text", { x: left + 16, y: top + 10 }, words);
    });
  }

  /** @param {any} answer */
  function table(answer) {
    const body = element("tbody");
    for (const { at, kinds } of parts(answer.terms_bytes)) {
      for (const kind of kinds) {
        const bytes = answer.terms_bytes[kind];
        body.append(element("tr", {}, element("th", { scope: "row" }, element("span", { class: `fit-key fit-key-${at}` }), kind), element("td", {}, gib(bytes)), element("td", {}, grouped(bytes))));
      }
    }
    body.append(element("tr", { class: "fit-total" }, element("th", { scope: "row" }, "peak"), element("td", {}, gib(answer.peak_bytes)), element("td", {}, grouped(answer.peak_bytes))));
    const head = element("thead", {}, element("tr", {}, ...["term", "GiB", "bytes"].map((name) => element("th", { scope: "col" }, name))));
    return element("table", { class: "fit-terms" }, element("caption", {}, `Tensors at the peak, ${answer.at}`), head, body);
  }

  /** @param {any} answer */
  function show(answer) {
    const [verdict, ...rest] = answer.conclusion;
    says.textContent = verdict;
    says.classList.toggle("fit-refused", false);
    box.dataset.verdict = answer.verdict;
    stage.replaceChildren();
    assume(answer.options);
    draw(answer);
    const assumed = answer.assumed.slice(1);
    told.replaceChildren(
      element("ul", {}, ...rest.map((/** @type {string} */ sentence) => element("li", {}, sentence))),
      table(answer),
      element("p", { class: "fit-command" }, "The same on the command line: ", element("code", {}, ...answer.command.split(/ (?=--)/).flatMap((/** @type {string} */ words) => [element("span", {}, words), " "]))),
      element("details", {}, element("summary", {}, assumed[0]), element("pre", {}, assumed.slice(1).map((/** @type {string} */ line) => line.trim()).join("\n"))),
    );
    told.hidden = false;
  }

  /** @param {string} sentence */
  function refuse(sentence) {
    says.textContent = sentence;
    says.classList.toggle("fit-refused", true);
    delete box.dataset.verdict;
    stage.replaceChildren();
    told.hidden = true;
  }

  // ---- asking: one question at a time; of those that come meanwhile the last one

  /** @type {Worker | undefined} */
  let worker;
  let id = 0, busy = false, waiting = false;

  async function ask() {
    if (busy) {
      waiting = true;
      return;
    }
    busy = true;
    if (!source) says.textContent = "Loading the byte model.";
    try {
      const script = await load(path);
      if (!worker) {
        worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
        worker.addEventListener("message", ({ data }) => {
          busy = false;
          box.classList.remove("fit-waiting");
          if (waiting) {
            waiting = false;
            ask();
          } else if (data.answer) show(data.answer);
          else refuse(data.refused);
        });
        worker.addEventListener("error", (event) => fail(event.message));
      }
      id += 1;
      worker.postMessage({ id, question: question(), text: text.value });
    } catch (error) {
      fail(/** @type {Error} */ (error).message);
    }
  }

  /** @param {string} why */
  function fail(why) {
    busy = waiting = false;
    worker?.terminate();
    worker = undefined;
    box.classList.remove("fit-waiting");
    refuse(`The byte model did not start: ${why} Change a setting to try again.`);
  }

  /** @type {number | undefined} */
  let soon;
  const later = () => {
    clearTimeout(soon);
    soon = window.setTimeout(ask, 150);
  };

  /** The model is the text in the box. @param {string} [given] */
  function take(given) {
    if (given !== undefined) text.value = given;
    const model = /** @type {HTMLSelectElement} */ (inputs.get("model"));
    let option = [...model.options].find((one) => values.get(one) === OWN);
    if (!option) {
      option = /** @type {HTMLOptionElement} */ (element("option", {}, "your config.json"));
      values.set(option, OWN);
      model.prepend(option);
    }
    option.selected = true;
    later();
  }

  /** @param {File | undefined} chosen */
  async function read(chosen) {
    if (!chosen) return;
    own.setAttribute("open", "");
    if (chosen.size > LONGEST) refuse(`${chosen.name} has ${grouped(chosen.size)} bytes, which no config.json has: give the config.json of a model.`);
    else take(await chosen.text());
  }

  box.addEventListener("input", (event) => {
    if (event.target === text) take();
    else if (event.target !== file) later();
  });
  file.addEventListener("change", () => read(file.files?.[0]));
  box.addEventListener("dragover", (event) => event.preventDefault());
  box.addEventListener("drop", (event) => {
    if (event.target === text && !event.dataTransfer?.files.length) return;
    event.preventDefault();
    if (event.dataTransfer?.files.length) read(event.dataTransfer.files[0]);
    else take(event.dataTransfer?.getData("text"));
  });

  if (typeof IntersectionObserver === "undefined") ask();
  else {
    const sight = new IntersectionObserver((entries) => {
      if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
      sight.disconnect();
      ask();
    }, { rootMargin: "0px 0px 600px 0px" });
    sight.observe(box);
  }
}

for (const figure of document.querySelectorAll("figure[data-fit]:not(.explorer-live)")) put(/** @type {HTMLElement} */ (figure));
})();
