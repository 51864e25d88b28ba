// @ts-check
// A training, step by step, and greedy answers: what the worker runs and the tests run in Node.
"use strict";

const { space } = require("./arrays.js");
const { llama } = require("./model.js");
const { startOf } = require("./methods.js");
const { adamw, rateAt } = require("./optimizer.js");
const { singularValues } = require("./spectrum.js");

/** @typedef {import("./model.js").Config} Config */
/** @typedef {import("./methods.js").Choice} Choice */
/** @typedef {import("./parts.js").Space} Space */
/** @typedef {import("./weights.js").Tensor} Tensor */

/**
 * Token ids of a prompt and its answer, which starts at `start`.
 * @typedef {{ ids: number[], start: number }} Row
 */

/**
 * What a training is given beside its weights. length: tokens of the longest row.
 * @typedef {{ config: Config, rows: Row[], length: number, end: number, most: number, warmup: number }} Task
 */

/** @typedef {{ choice: Choice, rate: number, steps: number, seed: number, plan: number[][] }} Settings */

const AT_ONCE = 4; // prompts that are answered together, at most

/**
 * Trainings of one model on one task, one at a time, in one space.
 * @param {Task} task
 * @param {Space} [memory] WebAssembly's, or a graphics processor's
 */
function trainer(task, memory = space()) {
  const { config } = task;

  /**
   * A training from its start. `next` makes one step and returns its loss, `answers` and `spectrum` ask for what is there
   * now; `state` is all that another training of the same settings needs in `resume` to go on from here.
   * @param {Record<string, Tensor>} tensors the base weights by torch's names
   * @param {Settings} settings
   */
  function start(tensors, { choice, rate, steps, seed, plan }) {
    const virtual = choice.method === "prompt" ? choice.start.length : 0, rows = Math.max(AT_ONCE, ...plan.map((batch) => batch.length));
    const labels = Math.max(...plan.map((batch) => batch.reduce((sum, row) => sum + task.rows[row].ids.length - task.rows[row].start, 0)));
    const most = { rows, length: virtual + task.length, wanted: Math.max(labels, rows) };
    memory.reset();
    const model = llama(memory, config, tensors, startOf(config, choice, seed, tensors),
      { gamma: choice.alpha / choice.rank, full: choice.method === "full", most });
    const optimizer = adamw(memory, model.trained, task.most);
    memory.settled(Math.max(rows * most.length, config.vocab_size), Math.max(rows * most.length, config.vocab_size));
    let at = 0;

    /** @returns {Promise<number>} nats per label token of the batch, before the step */
    async function next() {
      const batch = plan[at].map((row) => task.rows[row]);
      const losses = model.loss(batch.map(({ ids, start: from }) => ({ ids: ids.slice(0, -1), wanted: from - 1 })), batch.flatMap(({ ids, start: from }) => ids.slice(from)));
      optimizer.step(rateAt({ rate, warmup: task.warmup }, at, steps), at);
      const [each] = await memory.read([losses]), loss = each.reduce((sum, nats) => sum + nats, 0) / each.length;
      at += 1;
      if (!Number.isFinite(loss)) throw new Error(`Training diverged at step ${at}: lower the learning rate.`);
      return loss;
    }

    /**
     * The greedy answer to each prompt.
     * @param {number[][]} prompts AT_ONCE at most
     * @param {number} limit of new tokens
     */
    async function answers(prompts, limit) {
      const texts = prompts.map((prompt) => [...prompt]), width = config.vocab_size;
      let open = texts;
      for (let count = 0; count < limit && open.length; count += 1) {
        const [data] = await memory.read([model.logits(open.map((ids) => ({ ids, wanted: ids.length - 1 })))]);
        open = open.filter((ids, which) => {
          const id = largest(data.subarray(which * width, (which + 1) * width));
          if (id !== task.end) ids.push(id);
          return id !== task.end;
        });
      }
      return texts.map((ids, which) => ids.slice(prompts[which].length));
    }

    /** Singular values of the update of one matrix of the last layer; none where nothing is factored. */
    async function spectrum() {
      const last = model.added[config.num_hidden_layers - 1], name = "v" in last ? "v" : Object.keys(last)[0];
      const { A, B } = last[name] ?? {};
      if (!A || !B) return [];
      const [a, b] = await memory.read([A.value, B.value]);
      return singularValues(a, b, choice.rank, choice.alpha / choice.rank);
    }

    async function state() {
      return { at, values: await memory.read(optimizer.state) };
    }

    /** @param {{ at: number, values: Float32Array[] }} from */
    function resume(from) {
      at = from.at;
      optimizer.state.forEach((matrix, which) => memory.write(matrix, from.values[which]));
    }

    return { next, answers, spectrum, state, resume };
  }

  return { start };
}

/** @param {Float32Array} values */
function largest(values) {
  let best = 0;
  for (let at = 1; at < values.length; at += 1) if (values[at] > values[best]) best = at;
  return best;
}

module.exports = { AT_ONCE, trainer };
