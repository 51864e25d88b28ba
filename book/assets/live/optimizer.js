// @ts-check
// AdamW with clipping and warm-up, as the book's training loop has them.
"use strict";

const BETA1 = 0.9;
const BETA2 = 0.999;
const EPSILON = 1e-8;

/**
 * Linear warm-up over the first `warmup` of the steps, then constant.
 * @param {{ rate: number, warmup: number }} budget
 * @param {number} step from 0
 * @param {number} steps
 */
function rateAt(budget, step, steps) {
  const warm = Math.max(1, roundHalfEven(budget.warmup * steps));
  return budget.rate * Math.min(1, (step + 1) / warm);
}

/** As Python's `round`: a half goes to the even neighbour. @param {number} value */
function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * What a step takes from the schedule, as scalars of jax-js.
 * @param {any} np
 * @param {number} rate
 * @param {number} step from 0
 */
function scheduleAt(np, rate, step) {
  return {
    rate: np.array(rate / (1 - BETA1 ** (step + 1))),
    root: np.array(1 / Math.sqrt(1 - BETA2 ** (step + 1))),
  };
}

/**
 * One step without weight decay, after clipping the norm of all gradients to `most`.
 * Source: Loshchilov and Hutter 2019, arXiv:1711.05101; clipping as torch's `clip_grad_norm_`.
 * @param {any} jax
 * @param {any} values what is trained
 * @param {any} gradients
 * @param {{ first: any, second: any }} moments
 * @param {any} schedule of `scheduleAt`
 * @param {number} most
 * @returns {[any, { first: any, second: any }]} the new values and moments
 */
function adamw({ numpy: np, tree }, values, gradients, moments, schedule, most) {
  const squares = tree.leaves(gradients).map((/** @type {any} */ each) => np.sum(np.square(each.ref)));
  const norm = np.sqrt(squares.reduce((/** @type {any} */ sum, /** @type {any} */ each) => sum.add(each)));
  const kept = np.minimum(np.reciprocal(norm.add(1e-6)).mul(most), 1);
  const clipped = tree.map((/** @type {any} */ g) => g.mul(kept.ref), gradients);
  kept.dispose();
  const first = tree.map((/** @type {any} */ m, /** @type {any} */ g) => m.mul(BETA1).add(g.ref.mul(1 - BETA1)), moments.first, clipped);
  const second = tree.map((/** @type {any} */ v, /** @type {any} */ g) => v.mul(BETA2).add(np.square(g).mul(1 - BETA2)), moments.second, clipped);
  const moved = tree.map((/** @type {any} */ value, /** @type {any} */ m, /** @type {any} */ v) => {
    const scale = np.sqrt(v.ref).mul(schedule.root.ref).add(EPSILON);
    return value.sub(m.ref.mul(schedule.rate.ref).mul(np.reciprocal(scale)));
  }, values, first, second);
  tree.dispose(schedule);
  return [moved, { first, second }];
}

module.exports = { adamw, rateAt, scheduleAt };
