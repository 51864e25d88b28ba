// @ts-check
// What each method trains, how it enters the model, and the bytes of its state.
"use strict";

const { LINEARS, sidesOf } = require("./model.js");
const { startsOfA } = require("./random.js");

/** @typedef {import("./model.js").Config} Config */
/** @typedef {import("./weights.js").Tensor} Tensor */

/**
 * A method and its size. start: ids whose embeddings a prompt starts from.
 * @typedef {{
 *   method: "full" | "lora" | "prompt" | "ia3", rank: number, alpha: number, targets: string[], start: number[],
 * }} Choice
 */

/**
 * Where the trained values lie before the first step, as plain numbers.
 * @param {Config} config
 * @param {Choice} choice
 * @param {number} seed
 * @param {Record<string, Tensor>} tensors the base
 * @returns {any} `{ layers }` or `{ prompt }` with tensors in it; of full fine-tuning nothing, the base is trained
 */
function startOf(config, choice, seed, tensors) {
  const { method, rank, targets } = choice, sides = sidesOf(config), depth = config.num_hidden_layers;
  if (method === "full") return {};
  if (method === "prompt") {
    const { data } = tensors["model.embed_tokens.weight"], width = config.hidden_size;
    const prompt = new Float32Array(choice.start.length * width);
    choice.start.forEach((id, at) => prompt.set(data.subarray(id * width, (id + 1) * width), at * width));
    return { prompt: { shape: [choice.start.length, width], data: prompt } };
  }
  if (method === "ia3") {
    const ones = (/** @type {number} */ length) => ({ shape: [length], data: new Float32Array(length).fill(1) });
    return {
      layers: Array.from({ length: depth }, () => ({
        k: { output: ones(sides.k[1]) }, v: { output: ones(sides.v[1]) }, down: { input: ones(sides.down[0]) },
      })),
    };
  }
  const adapted = Object.keys(LINEARS).filter((name) => targets.includes(name));
  const starts = startsOfA(Array.from({ length: depth }, () => adapted.map((name) => sides[name])).flat(), rank, seed);
  return {
    layers: Array.from({ length: depth }, (_, at) => Object.fromEntries(adapted.map((name, which) => {
      const [d_in, d_out] = sides[name], rows = starts[at * adapted.length + which], A = new Float32Array(d_in * rank);
      for (let row = 0; row < rank; row += 1) for (let x = 0; x < d_in; x += 1) A[x * rank + row] = rows[row * d_in + x];
      return [name, { A: { shape: [d_in, rank], data: A }, B: { shape: [rank, d_out], data: new Float32Array(rank * d_out) } }];
    }))),
  };
}

/**
 * How many numbers a method trains.
 * @param {Config} config
 * @param {Choice} choice
 */
function trainedNumbers(config, choice) {
  const sides = sidesOf(config), { method, rank, targets } = choice, layers = config.num_hidden_layers;
  const sum = (/** @type {string[]} */ names, /** @type {(side: [number, number]) => number} */ each) =>
    names.reduce((total, name) => total + each(sides[name]), 0);
  if (method === "prompt") return choice.start.length * config.hidden_size;
  if (method === "ia3") return layers * (sum(["k", "v"], ([, d_out]) => d_out) + sides.down[0]);
  if (method === "lora") return layers * rank * sum(targets, ([d_in, d_out]) => d_in + d_out);
  const norms = (2 * layers + 1) * config.hidden_size, matrices = layers * sum(Object.keys(LINEARS), ([d_in, d_out]) => d_in * d_out);
  return matrices + norms + config.vocab_size * config.hidden_size;
}

/**
 * Bytes that training keeps for what it trains, in float32: value, gradient and Adam's two moments.
 * @param {number} numbers
 */
const stateBytes = (numbers) => 16 * numbers;

module.exports = { startOf, stateBytes, trainedNumbers };
