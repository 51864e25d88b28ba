// @ts-check
// What runs beside the page: it is told to load, train or stop, and tells how far it is.
"use strict";

const { raced } = require("./race.js");
const { AT_ONCE, trainer } = require("./trainer.js");
const { tensorsOf } = require("./weights.js");

const EVERY = 5; // steps between two looks at the update

/** @type {Record<string, Record<string, import("./weights.js").Tensor>>} */
const bases = {};
/** @type {ReturnType<typeof trainer> | undefined} */
let trainings;
/** What answers a message after a training: the trained model, and how an untrained one is made. @type {{ after: ReturnType<typeof raced>, before: () => { answers: (prompts: number[][], limit: number) => Promise<number[][]> } } | undefined} */
let models;
let stopped = false;
/** A space on a graphics processor; the page has put what it takes before this script where the browser has one. @type {Promise<{ space: import("./parts.js").Space, end: () => void } | undefined> | undefined} */
let card = /** @type {any} */ (globalThis).peftbookGraphics?.().catch(() => undefined);

/** Do without the graphics processor from now on. */
function refused() {
  card?.then((there) => there?.end());
  card = undefined;
}

/** @param {Record<string, any>} told */
const tell = (told) => postMessage(told);
const pause = () => new Promise((resolve) => { setTimeout(resolve); });

/** The engine, made once; a sentence where a browser lacks what it needs. @param {any} task */
function ready(task) {
  if (typeof WebAssembly === "undefined") throw new Error("This browser has no WebAssembly.");
  trainings ??= trainer(task);
  return trainings;
}

/** The answers to any number of prompts. @param {{ answers: (prompts: number[][], limit: number) => Promise<number[][]> }} model @param {number[][]} prompts @param {number} limit */
async function answered(model, prompts, limit) {
  const answers = [];
  for (let at = 0; at < prompts.length; at += AT_ONCE) answers.push(...await model.answers(prompts.slice(at, at + AT_ONCE), limit));
  return answers;
}

/** A message's answers before and after the last training. @param {{ prompt: number[], limit: number }} asked */
async function ask({ prompt, limit }) {
  if (!models) return;
  const both = [...await models.before().answers([prompt], limit), ...await models.after.answers([prompt], limit)];
  tell({ kind: "asked", answers: both });
}

/**
 * @param {{
 *   task: any, base: string, file: any, levels: number[], settings: any, questions: number[][], tests: number[][], limit: number,
 * }} asked
 */
async function train({ task, base, file, levels, settings, questions, tests, limit }) {
  stopped = false;
  const engine = ready(task);
  bases[base] ??= tensorsOf(file, levels);
  const rival = async () => {
    const there = await card;
    return there && trainer(task, there.space).start(bases[base], settings);
  };
  const training = raced(engine.start(bases[base], settings), rival, refused);
  /** @type {ReturnType<ReturnType<typeof trainer>["start"]> | undefined} */
  let untrained;
  models = { after: training, before: () => (untrained ??= trainer(task).start(bases[base], settings)) };
  tell({ kind: "answers", when: "before", answers: await answered(training, questions, limit) });
  let step = 0;
  for (; step < settings.steps && !stopped; step += 1) {
    const began = performance.now(), loss = await training.next(), seconds = (performance.now() - began) / 1000;
    const spectrum = step % EVERY === EVERY - 1 || step === settings.steps - 1 ? await training.spectrum() : undefined;
    tell({ kind: "step", step, loss, seconds, spectrum });
    await pause();
  }
  tell({ kind: "answers", when: "after", answers: await answered(training, questions, limit) });
  tell({ kind: "tested", answers: await answered(training, tests, limit) });
  tell({ kind: "done", steps: step, by: training.by() });
}

/** Why a training ended, for a reader. @param {Error} error */
function reason(error) {
  if (typeof WebAssembly !== "undefined" && error instanceof WebAssembly.CompileError) return "This browser's WebAssembly lacks the vector instructions (SIMD) that the engine needs.";
  if (error instanceof RangeError) return `There is not enough memory for the arrays of a step (${error.message}).`;
  return error.message;
}

addEventListener("message", ({ data }) => {
  if (data.kind === "stop") {
    stopped = true;
    return;
  }
  (data.kind === "ask" ? ask : train)(data).catch((error) => tell({ kind: "failed", message: reason(error) }));
});
