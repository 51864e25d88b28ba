// @ts-check
// The random numbers of torch's CPU generator, so that a page starts from the A that PyTorch starts from.
"use strict";

const LENGTH = 624;
const SHIFT = 397;
const GAIN = Math.sqrt(2 / (1 + Math.sqrt(5) ** 2)); // as torch computes it, where √5² is not 5 either

/**
 * Mersenne Twister, MT19937, seeded as `torch.manual_seed` does: successive 32-bit words.
 * Source: Matsumoto and Nishimura 1998, ACM TOMACS 8(1).
 * @param {number} seed
 * @returns {() => number}
 */
function twister(seed) {
  const state = new Uint32Array(LENGTH);
  state[0] = seed;
  for (let at = 1; at < LENGTH; at += 1) {
    const last = state[at - 1] ^ (state[at - 1] >>> 30);
    state[at] = Math.imul(1812433253, last) + at;
  }
  let next = LENGTH;
  return () => {
    if (next === LENGTH) {
      for (let at = 0; at < LENGTH; at += 1) {
        const joined = (state[at] & 0x80000000) | (state[(at + 1) % LENGTH] & 0x7fffffff);
        state[at] = state[(at + SHIFT) % LENGTH] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
      }
      next = 0;
    }
    let word = state[next];
    next += 1;
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  };
}

/**
 * `count` float32 values of U(−bound, bound): 24 bits of a word each, as torch's `uniform_` takes them. The product and
 * the sum, both exact in 64 bits, are rounded once, as by the fused instruction of the processors that torch is built for.
 * @param {() => number} words
 * @param {number} count
 * @param {number} bound
 */
function uniform(words, count, bound) {
  const values = new Float32Array(count), edge = Math.fround(bound), width = Math.fround(2 * edge);
  for (let at = 0; at < count; at += 1) {
    const share = (words() & 0xffffff) / 0x1000000;
    values[at] = Math.fround(share * width - edge);
  }
  return values;
}

/**
 * LoRA's A of every adapted matrix, in the model's order: Kaiming-uniform with a = √5, which is U(−1/√d_in, 1/√d_in).
 * peft makes two `nn.Linear`, which draw their own values first, and then draws A anew; so the same words are skipped.
 * @param {[number, number][]} sides (d_in, d_out) of each matrix
 * @param {number} rank
 * @param {number} seed
 * @returns {Float32Array[]} (rank, d_in) each, row by row
 */
function startsOfA(sides, rank, seed) {
  const words = twister(seed);
  return sides.map(([wide, high]) => {
    for (let skipped = 0; skipped < rank * (wide + high); skipped += 1) words();
    return uniform(words, rank * wide, Math.sqrt(3) * (GAIN / Math.sqrt(wide)));
  });
}

module.exports = { startsOfA, twister, uniform };
