// @ts-check
// AdamW with clipping and warm-up, as the book's training loop has them.
"use strict";

const BETA1 = 0.9;
const BETA2 = 0.999;
const EPSILON = 1e-8;
const BESIDE = 1e-6; // added to the norm before clipping

/** @typedef {import("./parts.js").Space} Space */
/** @typedef {import("./arrays.js").Matrix} Matrix */
/** @typedef {import("./arrays.js").Parameter} Parameter */

/** What is trained, its gradient, and Adam's two moments. @typedef {{ value: Matrix, gradient: Matrix, first: Matrix, second: Matrix }} Moved */

/**
 * far: the rate over the first moments' correction. root: the second moments are corrected by its square.
 * @typedef {{ beta1: number, beta2: number, epsilon: number, far: number, root: number }} Adam
 */

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
 * AdamW without weight decay, after clipping the norm of all gradients to `most`, in a space before that is settled.
 * Source: Loshchilov and Hutter 2019, arXiv:1711.05101; clipping as torch's `clip_grad_norm_`.
 * @param {Space} space
 * @param {Required<Parameter>[]} trained
 * @param {number} most
 */
function adamw(space, trained, most) {
  const moved = trained.map(({ value, gradient }) => {
    const moment = () => space.array(value.rows, value.columns);
    return { value, gradient, first: moment(), second: moment() };
  });
  const kept = space.array(1, 1);

  /** @param {number} rate @param {number} step from 0 */
  function step(rate, step) {
    space.clipped(kept, moved, most, BESIDE);
    const far = rate / (1 - BETA1 ** (step + 1)), root = 1 / Math.sqrt(1 - BETA2 ** (step + 1));
    space.stepped(moved, kept, { beta1: BETA1, beta2: BETA2, epsilon: EPSILON, far, root });
  }

  /** Values and moments: all from which a training goes on. */
  const state = moved.flatMap(({ value, first, second }) => [value, first, second]);

  return { state, step };
}

module.exports = { adamw, rateAt };
