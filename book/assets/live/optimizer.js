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
 * AdamW without weight decay, after clipping the norm of all gradients to `most`.
 * Source: Loshchilov and Hutter 2019, arXiv:1711.05101; clipping as torch's `clip_grad_norm_`.
 * @param {{ value: { data: Float32Array }, gradient: { data: Float32Array } }[]} trained
 * @param {number} most
 */
function adamw(trained, most) {
  const moments = trained.map(({ value }) => ({ first: new Float32Array(value.data.length), second: new Float32Array(value.data.length) }));

  /** @param {number} rate @param {number} step from 0 */
  function step(rate, step) {
    let square = 0;
    for (const { gradient } of trained) for (const g of gradient.data) square += g * g;
    const kept = Math.min(1, most / (Math.sqrt(square) + 1e-6));
    const far = rate / (1 - BETA1 ** (step + 1)), root = 1 / Math.sqrt(1 - BETA2 ** (step + 1));
    trained.forEach(({ value, gradient }, which) => move(value.data, gradient.data, moments[which], kept, far, root));
  }

  return { step };
}

/** @param {Float32Array} values @param {Float32Array} gradient @param {{ first: Float32Array, second: Float32Array }} moments @param {number} kept @param {number} far @param {number} root */
function move(values, gradient, { first, second }, kept, far, root) {
  for (let at = 0; at < values.length; at += 1) {
    const g = kept * gradient[at], m = BETA1 * first[at] + (1 - BETA1) * g, v = BETA2 * second[at] + (1 - BETA2) * g * g;
    first[at] = m;
    second[at] = v;
    values[at] -= (far * m) / (Math.sqrt(v) * root + EPSILON);
  }
}

module.exports = { adamw, rateAt };
