// @ts-check
// A training, step by step, and greedy answers: what the worker runs and the tests run in Node.
"use strict";

const { llama, positionsOf } = require("./model.js");
const { startOf } = require("./methods.js");
const { adamw, rateAt, scheduleAt } = require("./optimizer.js");
const { singularValues } = require("./spectrum.js");

/** @typedef {import("./model.js").Config} Config */
/** @typedef {import("./methods.js").Choice} Choice */
/** @typedef {import("./weights.js").Tensor} Tensor */

/**
 * Token ids of a prompt and its answer, which starts at `start`.
 * @typedef {{ ids: number[], start: number }} Row
 */

/**
 * What a training is given beside its weights. length: tokens to which rows are padded. labels: the most of a batch.
 * @typedef {{ config: Config, rows: Row[], length: number, labels: number, end: number, most: number, warmup: number }} Task
 */

/** @typedef {{ choice: Choice, rate: number, steps: number, seed: number, plan: number[][] }} Settings */

/**
 * Trainings of one model on one task. Compiled steps are kept, so that the second training of a kind starts at once.
 * @param {any} jax a build of jax-js whose backend is ready
 * @param {Task} task
 */
function trainer(jax, task) {
  const { numpy: np, jit, valueAndGrad, tree } = jax;
  const model = llama(jax, task.config);

  const lossOf = (/** @type {any} */ trained, /** @type {any} */ frozen, /** @type {any} */ gamma, /** @type {any} */ batch) => {
    const { weights = frozen.weights, ...added } = trained;
    const scores = model.logits(weights, added, gamma, batch.ids, batch.chosen, batch.positions);
    return model.loss(scores, batch.targets, batch.parts);
  };
  const step = jit((/** @type {any} */ trained, /** @type {any} */ moments, /** @type {any} */ schedule,
    /** @type {any} */ frozen, /** @type {any} */ gamma, /** @type {any} */ batch) => {
    const [loss, gradients] = valueAndGrad(lossOf)(tree.ref(trained), frozen, gamma, batch);
    return [loss, ...adamw(jax, trained, gradients, moments, schedule, task.most)];
  });
  const scoresOf = jit((/** @type {any} */ trained, /** @type {any} */ frozen, /** @type {any} */ gamma, /** @type {any} */ batch) => {
    const { weights = frozen.weights, ...added } = trained;
    return model.logits(weights, added, gamma, batch.ids, batch.chosen, batch.positions);
  });

  const arrays = (/** @type {any} */ value) => (value.data ? np.array(value.data).reshape(value.shape) : Array.isArray(value)
    ? value.map(arrays) : Object.fromEntries(Object.entries(value).map(([name, each]) => [name, arrays(each)])));
  const zeros = (/** @type {any} */ like) => tree.map((/** @type {any} */ each) => np.array(new Float32Array(each.size)).reshape(each.shape), like);

  /** Rows of ids to arrays, with the positions whose logits are wanted: (row, position) pairs, one line each. */
  function placed(/** @type {number[][]} */ rows, /** @type {[number, number][]} */ wanted, /** @type {number} */ lines, /** @type {number} */ virtual) {
    const length = virtual + task.length, ids = new Int32Array(rows.length * task.length);
    rows.forEach((row, at) => ids.set(row, at * task.length));
    const chosen = new Float32Array(lines * rows.length * length);
    wanted.forEach(([row, position], line) => { chosen[line * rows.length * length + row * length + virtual + position] = 1; });
    return {
      ids: np.array(ids).reshape([rows.length, task.length]), chosen: np.array(chosen).reshape([lines, rows.length * length]),
      positions: positionsOf(np, task.config, length),
    };
  }

  /** A batch of rows to train on. */
  function batchOf(/** @type {Row[]} */ rows, /** @type {number} */ virtual) {
    const wanted = /** @type {[number, number][]} */ (rows.flatMap(({ ids, start }, row) => ids.slice(start).map((_, at) => [row, start + at - 1])));
    const targets = new Int32Array(task.labels), parts = new Float32Array(task.labels);
    wanted.forEach(([row, position], line) => {
      targets[line] = rows[row].ids[position + 1];
      parts[line] = 1 / wanted.length;
    });
    return { ...placed(rows.map(({ ids }) => ids.slice(0, -1)), wanted, task.labels, virtual), targets: np.array(targets), parts: np.array(parts) };
  }

  /**
   * A training from its start. `next` makes one step and returns its loss, `answers` and `spectrum` ask for what is there now.
   * @param {Record<string, Tensor>} tensors the base weights by torch's names
   * @param {Settings} settings
   */
  function start(tensors, { choice, rate, steps, seed, plan }) {
    const base = model.weightsFrom(tensors), full = choice.method === "full";
    let trained = { ...arrays(startOf(task.config, choice, seed, tensors)), ...(full ? { weights: base } : {}) };
    let moments = { first: zeros(trained), second: zeros(trained) };
    const frozen = full ? {} : { weights: base }, virtual = choice.method === "prompt" ? choice.start.length : 0;
    const gamma = () => np.array(choice.alpha / choice.rank);
    let at = 0;

    /** @returns {Promise<number>} nats per label token of the batch, before the step */
    async function next() {
      const batch = batchOf(plan[at].map((row) => task.rows[row]), virtual);
      const schedule = scheduleAt(np, rateAt({ rate, warmup: task.warmup }, at, steps), at);
      const [loss, ...after] = step(trained, moments, schedule, tree.ref(frozen), gamma(), batch);
      [trained, moments] = after;
      at += 1;
      const [value] = await loss.data();
      if (!Number.isFinite(value)) throw new Error(`Training diverged at step ${at}: lower the learning rate.`);
      return value;
    }

    /**
     * The greedy answer to each prompt, as many prompts as a batch has rows.
     * @param {number[][]} prompts
     * @param {number} limit of new tokens
     * @param {(answers: number[][]) => void} [told] after each token
     */
    async function answers(prompts, limit, told = () => {}) {
      const rows = prompts.map((prompt) => [...prompt]), done = rows.map(() => false);
      for (let count = 0; count < limit && done.includes(false); count += 1) {
        const wanted = /** @type {[number, number][]} */ (rows.map((row, which) => [which, row.length - 1]));
        const scores = scoresOf(tree.ref(trained), tree.ref(frozen), gamma(), placed(rows, wanted, rows.length, virtual));
        const values = await scores.data(), width = task.config.vocab_size;
        rows.forEach((row, which) => {
          if (done[which]) return;
          const id = largest(values.subarray(which * width, (which + 1) * width));
          done[which] = id === task.end;
          if (!done[which]) row.push(id);
        });
        told(rows.map((row, which) => row.slice(prompts[which].length)));
      }
      return rows.map((row, which) => row.slice(prompts[which].length));
    }

    /** Singular values of the update of one matrix of the last layer; none where nothing is factored. */
    async function spectrum() {
      const last = trained.layers?.[task.config.num_hidden_layers - 1] ?? {}, name = "v" in last ? "v" : Object.keys(last)[0];
      if (!last[name]?.A) return [];
      const { A, B } = last[name], wide = B.shape[0];
      return singularValues(await A.ref.data(), await B.ref.data(), wide, choice.rank, choice.alpha / choice.rank);
    }

    const dispose = () => tree.dispose([trained, moments, frozen]);
    return { next, answers, spectrum, dispose };
  }

  return { start };
}

/** @param {Float32Array} values */
function largest(values) {
  let best = 0;
  for (let at = 1; at < values.length; at += 1) if (values[at] > values[best]) best = at;
  return best;
}

module.exports = { trainer };
