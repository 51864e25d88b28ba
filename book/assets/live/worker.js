// @ts-check
// What runs beside the page: it is told to load, train or stop, and tells how far it is.
"use strict";

const jax = require("./jax/index.cjs");
const { trainer } = require("./trainer.js");
const { tensorsOf } = require("./weights.js");

const EVERY = 5; // steps between two looks at the update

/** @type {Record<string, Record<string, import("./weights.js").Tensor>>} */
const bases = {};
/** @type {ReturnType<typeof trainer> | undefined} */
let trainings;
let stopped = false;

/** @param {Record<string, any>} told */
const tell = (told) => postMessage(told);
const pause = () => new Promise((resolve) => { setTimeout(resolve); });

/** The arithmetic that the engine needs; a sentence where there is none. */
async function ready() {
  if (trainings) return;
  const backends = typeof WebAssembly === "undefined" ? [] : await jax.init("wasm");
  if (!backends.includes("wasm")) throw new Error("This browser has no WebAssembly.");
  jax.defaultDevice("wasm");
}

/**
 * @param {{
 *   task: any, base: string, file: any, levels: number[], settings: any, questions: number[][], limit: number,
 * }} asked
 */
async function train({ task, base, file, levels, settings, questions, limit }) {
  stopped = false;
  tell({ kind: "phase", phase: "starting" });
  await ready();
  trainings ??= trainer(jax, task);
  bases[base] ??= tensorsOf(file, levels);
  const training = trainings.start(bases[base], settings);
  try {
    tell({ kind: "phase", phase: "compiling" });
    tell({ kind: "answers", when: "before", answers: await training.answers(questions, limit) });
    let step = 0;
    for (; step < settings.steps && !stopped; step += 1) {
      const began = performance.now();
      const loss = await training.next();
      const seconds = (performance.now() - began) / 1000;
      const spectrum = step % EVERY === EVERY - 1 || step === settings.steps - 1 ? await training.spectrum() : undefined;
      tell({ kind: "step", step, loss, seconds, spectrum });
      await pause();
    }
    tell({ kind: "answers", when: "after", answers: await training.answers(questions, limit) });
    tell({ kind: "done", steps: step });
  } finally {
    training.dispose();
  }
}

addEventListener("message", ({ data }) => {
  if (data.kind === "stop") {
    stopped = true;
    return;
  }
  train(data).catch((error) => tell({ kind: "failed", message: error.message }));
});
