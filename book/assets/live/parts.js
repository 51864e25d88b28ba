// @ts-check
// The parts of a decoder layer, each forward and backward, in the words of a space: WebAssembly's or a graphics
// processor's. A part keeps from its forward pass what its backward pass needs.
"use strict";

const { first } = require("./arrays.js");

/** @typedef {import("./arrays.js").Matrix} Matrix */
/** @typedef {import("./arrays.js").Parameter} Parameter */
/** @typedef {ReturnType<typeof import("./arrays.js").space>} Space */

/**
 * What a method adds to one matrix: LoRA's A, (d_in, r), and B, (r, d_out); (IA)³'s scale of its output or input.
 * @typedef {{ A?: Parameter, B?: Parameter, output?: Parameter, input?: Parameter }} Added
 */

/**
 * Tokens of one row that ask, and all of its tokens, which are asked. queries, keys: the first of either among those of
 * the batch.
 * @typedef {{ queries: number, count: number, keys: number, length: number }} Segment
 */

/**
 * x ⊙ gain / √(mean x² + ε) of each row.
 * @param {Space} space @param {Parameter} gain @param {number} epsilon @param {number} most rows
 */
function norm(space, gain, epsilon, most) {
  const out = space.array(most, gain.value.columns), all = space.array(most, 1);
  let x = out;

  /** @param {Matrix} given */
  function forward(given) {
    x = given;
    const y = first(out, x.rows);
    space.normed(y, all, x, gain.value, epsilon);
    return y;
  }

  /** Add the gradient by x to dx. @param {Matrix} dx @param {Matrix} dy */
  function backward(dx, dy) {
    space.unnormed(dx, dy, x, gain.value, all);
    if (gain.gradient) space.gained(gain.gradient, dy, x, all);
  }

  return { forward, backward };
}

/**
 * W x, or W x + γ B A x, or scaled by (IA)³. W is (d_out, d_in).
 * @param {Space} space @param {Parameter} w @param {Added} added @param {number} gamma @param {number} most rows
 */
function linear(space, w, { A, B, output, input }, gamma, most) {
  const { rows: d_out, columns: d_in } = w.value, rank = A?.value.columns ?? 0;
  const out = space.array(most, d_out), before = output ? space.array(most, d_out) : out, dz = output ? space.array(most, d_out) : out;
  const within = input ? space.array(most, d_in) : undefined, dWithin = input ? space.array(most, d_in) : undefined;
  const low = space.array(most, rank), dLow = space.array(most, rank);
  let x = out;

  /** @param {Matrix} given @param {Matrix} [onto] what the result is added to */
  function forward(given, onto) {
    x = given;
    const y = first(out, x.rows), z = first(before, x.rows), inner = within ? first(within, x.rows) : x;
    if (input) space.scaled(inner, x, input.value);
    if (onto) space.copied(z, onto);
    space.product(z, inner, w.value, "b", Boolean(onto));
    if (A && B) {
      const t = first(low, x.rows);
      space.product(t, x, A.value);
      space.times(t, gamma);
      space.product(z, t, B.value, "", true);
    }
    if (output) space.scaled(y, z, output.value);
    return y;
  }

  /** Gradients of what is trained here, and, where dx is given, dx + the gradient by x, or that alone. @param {Matrix | undefined} dx @param {Matrix} dy @param {boolean} adds */
  function backward(dx, dy, adds) {
    let d = dy;
    if (output?.gradient) {
      space.summed(output.gradient, first(before, dy.rows), dy);
      d = first(dz, dy.rows);
      space.scaled(d, dy, output.value);
    }
    const inner = within ? first(within, x.rows) : x;
    if (w.gradient) space.product(w.gradient, d, inner, "a");
    const t = first(low, dy.rows), dt = first(dLow, dy.rows);
    if (A?.gradient && B?.gradient) {
      space.product(B.gradient, t, d, "a");
      space.product(dt, d, B.value, "b");
      space.times(dt, gamma);
      space.product(A.gradient, x, dt, "a");
    }
    if (input?.gradient && dWithin) {
      const inside = first(dWithin, dy.rows);
      space.product(inside, d, w.value);
      space.summed(input.gradient, inside, x);
      if (dx) space.scaled(dx, inside, input.value);
      return;
    }
    if (!dx) return;
    space.product(dx, d, w.value, "", adds);
    if (A) space.product(dx, dt, A.value, "b", true);
  }

  return { forward, backward };
}

/**
 * Causal attention with groups of heads that share a key and a value.
 * @param {Space} space @param {{ num_attention_heads: number, num_key_value_heads: number, head_dim: number }} config
 * @param {number} most queries @param {number} longest keys of a row
 */
function attention(space, { num_attention_heads: heads, num_key_value_heads: groups, head_dim: size }, most, longest) {
  const scale = 1 / Math.sqrt(size), wide = heads * size, narrow = groups * size, high = heads * longest, sharing = heads / groups;
  const out = space.array(most, wide), shares = space.array(most * heads, longest), dShares = space.array(most * heads, longest);
  const across = { down: wide, alongA: 1, alongB: 1, across: narrow, wide: high, adds: false }; // queries by keys: scores
  const along = { down: high, alongA: 1, alongB: narrow, across: 1, wide, adds: false }; // shares by keys: queries' side
  const back = { down: 1, alongA: high, alongB: wide, across: 1, wide: narrow, adds: false }; // shares by queries: keys' side
  /** @type {Record<string, (place: { query: number, key: number, share: number }) => [number, number, number]>} */
  const order = {
    scores: ({ query, key, share }) => [query, key, share], mixed: ({ query, key, share }) => [share, key, query],
    returned: ({ query, key, share }) => [share, query, key],
  };
  /** @type {Matrix} */ let q;
  /** @type {Matrix} */ let k;
  /** @type {Matrix} */ let v;
  /** @type {ReturnType<typeof laidOut>} */ let laid;
  /** @type {Int32Array} */ let positions;

  /**
   * The products of all segments and heads. A row of the shares is a query and a head. Heads that share a key add to it
   * one after another.
   * @param {Segment[]} segments
   */
  function laidOut(segments) {
    const each = segments.map(({ queries, count, keys, length }) => ({ count, length, places: Array.from({ length: heads }, (_, head) => ({
      query: queries * wide + head * size, key: keys * narrow + Math.floor(head / sharing) * size, share: queries * high + head * longest,
    })) }));
    return {
      scores: each.map(({ count, length, places }) => ({ rows: count, columns: length, terms: size, offsets: places.map(order.scores) })),
      mixed: each.map(({ count, length, places }) => ({ rows: count, columns: size, terms: length, offsets: places.map(order.mixed) })),
      returned: Array.from({ length: sharing }, (_, turn) => each.map(({ count, length, places }) =>
        ({ rows: length, columns: size, terms: count, offsets: places.filter((__, head) => head % sharing === turn).map(order.returned) }))),
    };
  }

  /** @param {Matrix} c @param {Matrix} a @param {Matrix} b */
  const returned = (c, a, b) => laid.returned.forEach((parts, turn) => space.products(c, a, b, { ...back, adds: turn > 0 }, parts));

  /** @param {Matrix} queries @param {Matrix} keys @param {Matrix} values @param {Segment[]} given @param {Int32Array} asking positions of the queries */
  function forward(queries, keys, values, given, asking) {
    [q, k, v, laid, positions] = [queries, keys, values, laidOut(given), asking];
    const seen = first(out, q.rows);
    space.products(shares, q, k, across, laid.scores);
    space.softmax(first(shares, q.rows * heads), positions, scale);
    space.products(seen, shares, v, along, laid.mixed);
    return seen;
  }

  /** @param {Matrix} dq @param {Matrix} dk @param {Matrix} dv @param {Matrix} dy */
  function backward(dq, dk, dv, dy) {
    space.products(dShares, dy, v, across, laid.scores);
    space.unsoftmax(first(dShares, q.rows * heads), shares, positions, scale);
    space.products(dq, dShares, k, along, laid.mixed);
    returned(dk, dShares, q);
    returned(dv, shares, dy);
  }

  return { forward, backward };
}

/** silu(gate) ⊙ up. @param {Space} space @param {number} width @param {number} most rows */
function gated(space, width, most) {
  const out = space.array(most, width), sigmoids = space.array(most, width);
  /** @type {Matrix} */ let gate;
  /** @type {Matrix} */ let up;

  /** @param {Matrix} g @param {Matrix} u */
  function forward(g, u) {
    [gate, up] = [g, u];
    const y = first(out, g.rows);
    space.gated(y, sigmoids, gate, up);
    return y;
  }

  /** @param {Matrix} dg @param {Matrix} du @param {Matrix} dy */
  const backward = (dg, du, dy) => space.ungated(dg, du, dy, sigmoids, gate, up);

  return { forward, backward };
}

module.exports = { attention, gated, linear, norm };
