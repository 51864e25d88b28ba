// @ts-check
// The parts of a decoder layer, each forward and backward. A part keeps from its forward pass what its backward pass needs.
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
 * the batch. position: of the first query within its row; the others follow.
 * @typedef {{ queries: number, count: number, keys: number, length: number, position: number }} Segment
 */

/** y = x ⊙ l, for each row. @param {Matrix} y @param {Matrix} x @param {Matrix} l */
function scaled({ data: y, columns }, { data: x }, { data: l }) {
  for (let at = 0; at < y.length; at += 1) y[at] = x[at] * l[at % columns];
}

/** Σ over rows of x ⊙ y. @param {Matrix} sum @param {Matrix} x @param {Matrix} y */
function summed({ data: sum }, { data: x, columns }, { data: y }) {
  sum.fill(0);
  for (let at = 0; at < x.length; at += 1) sum[at % columns] += x[at] * y[at];
}

/**
 * x ⊙ gain / √(mean x² + ε) of each row.
 * @param {Space} space @param {Parameter} gain @param {number} epsilon @param {number} most rows
 */
function norm(space, gain, epsilon, most) {
  const width = gain.value.columns, out = space.array(most, width), inverse = new Float64Array(most);
  let x = out;

  /** @param {Matrix} given */
  function forward(given) {
    x = given;
    const y = first(out, x.rows), g = gain.value.data, from = x.data, to = y.data;
    for (let row = 0, at = 0; row < x.rows; row += 1, at += width) {
      let sum = 0;
      for (let column = 0; column < width; column += 1) sum += from[at + column] * from[at + column];
      const factor = 1 / Math.sqrt(sum / width + epsilon);
      for (let column = 0; column < width; column += 1) to[at + column] = from[at + column] * factor * g[column];
      inverse[row] = factor;
    }
    return y;
  }

  /** Add the gradient by x to dx. @param {Matrix} dx @param {Matrix} dy */
  function backward(dx, dy) {
    const g = gain.value.data, from = x.data, to = dx.data, given = dy.data, dg = gain.gradient?.data.fill(0);
    for (let row = 0, at = 0; row < dy.rows; row += 1, at += width) {
      const factor = inverse[row];
      let sum = 0;
      for (let column = 0; column < width; column += 1) sum += g[column] * given[at + column] * from[at + column];
      const pull = (sum * factor ** 3) / width;
      for (let column = 0; column < width; column += 1) to[at + column] += factor * g[column] * given[at + column] - pull * from[at + column];
      if (dg) for (let column = 0; column < width; column += 1) dg[column] += given[at + column] * from[at + column] * factor;
    }
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
    if (input) scaled(inner, x, input.value);
    if (onto) z.data.set(onto.data);
    space.product(z, inner, w.value, "b", Boolean(onto));
    if (A && B) {
      const t = first(low, x.rows);
      space.product(t, x, A.value);
      for (let at = 0; at < t.data.length; at += 1) t.data[at] *= gamma;
      space.product(z, t, B.value, "", true);
    }
    if (output) scaled(y, z, output.value);
    return y;
  }

  /** Gradients of what is trained here, and, where dx is given, dx + the gradient by x, or that alone. @param {Matrix | undefined} dx @param {Matrix} dy @param {boolean} adds */
  function backward(dx, dy, adds) {
    let d = dy;
    if (output?.gradient) {
      summed(output.gradient, first(before, dy.rows), dy);
      d = first(dz, dy.rows);
      scaled(d, dy, output.value);
    }
    const inner = within ? first(within, x.rows) : x;
    if (w.gradient) space.product(w.gradient, d, inner, "a");
    const t = first(low, dy.rows), dt = first(dLow, dy.rows);
    if (A?.gradient && B?.gradient) {
      space.product(B.gradient, t, d, "a");
      space.product(dt, d, B.value, "b");
      for (let at = 0; at < dt.data.length; at += 1) dt.data[at] *= gamma;
      space.product(A.gradient, x, dt, "a");
    }
    if (input?.gradient && dWithin) {
      const inside = first(dWithin, dy.rows);
      space.product(inside, d, w.value);
      summed(input.gradient, inside, x);
      if (dx) scaled(dx, inside, input.value);
      return;
    }
    if (!dx) return;
    space.product(dx, d, w.value, "", adds);
    if (A) space.product(dx, dt, A.value, "b", true);
  }

  return { forward, backward };
}

/**
 * Turn pairs of a head's numbers by their position's angles, or back.
 * @param {Matrix} x @param {Int32Array} positions of its rows @param {{ cos: Float32Array, sin: Float32Array }} table @param {number} size of a head @param {1 | -1} way
 */
function rotate({ data, rows, columns }, positions, { cos, sin }, size, way) {
  const half = size / 2;
  for (let row = 0; row < rows; row += 1) for (let head = row * columns; head < (row + 1) * columns; head += size) {
    for (let pair = 0, angle = positions[row] * half; pair < half; pair += 1, angle += 1) {
      const x = data[head + pair], y = data[head + pair + half], c = cos[angle], s = way * sin[angle];
      data[head + pair] = x * c - y * s;
      data[head + pair + half] = y * c + x * s;
    }
  }
}

/**
 * Causal attention with groups of heads that share a key and a value.
 * @param {Space} space @param {{ num_attention_heads: number, num_key_value_heads: number, head_dim: number }} config
 * @param {number} most queries @param {number} longest keys of a row
 */
function attention(space, { num_attention_heads: heads, num_key_value_heads: groups, head_dim: size }, most, longest) {
  const scale = 1 / Math.sqrt(size), wide = heads * size, narrow = groups * size;
  const out = space.array(most, wide), shares = space.array(most * heads, longest), dShares = space.array(most * heads, longest);
  /** @type {Matrix} */ let q;
  /** @type {Matrix} */ let k;
  /** @type {Matrix} */ let v;
  /** @type {Segment[]} */ let segments;

  /** Where a segment's part of the queries', keys' and scores' matrices begins, head by head. @param {Segment} segment */
  const places = ({ queries, count, keys, length }) => Array.from({ length: heads }, (_, head) => ({
    query: queries * wide + head * size, key: keys * narrow + Math.floor((head * groups) / heads) * size,
    share: queries * heads * longest + head * count * length,
  }));

  /** @param {Matrix} queries @param {Matrix} keys @param {Matrix} values @param {Segment[]} given */
  function forward(queries, keys, values, given) {
    [q, k, v, segments] = [queries, keys, values, given];
    const seen = first(out, q.rows);
    for (const segment of segments) {
      const { count, length } = segment, all = places(segment);
      space.products(shares, q, k, { rows: count, columns: length, terms: size, down: wide, alongA: 1, alongB: 1, across: narrow, wide: length,
        adds: false, offsets: all.map(({ query, key, share }) => [query, key, share]) });
      for (const { share } of all) softmax(shares.data, share, segment);
      space.products(seen, shares, v, { rows: count, columns: size, terms: length, down: length, alongA: 1, alongB: narrow, across: 1, wide,
        adds: false, offsets: all.map(({ query, key, share }) => [share, key, query]) });
    }
    return seen;
  }

  /** Scores to shares, row by row. @param {Float32Array} x @param {number} from @param {Segment} segment */
  function softmax(x, from, { count, length, position }) {
    for (let query = 0, at = from; query < count; query += 1, at += length) {
      const seen = position + query + 1;
      let most = -Infinity, sum = 0;
      for (let key = 0; key < seen; key += 1) most = Math.max(most, x[at + key]);
      for (let key = 0; key < seen; key += 1) sum += x[at + key] = Math.exp(scale * (x[at + key] - most));
      for (let key = 0; key < seen; key += 1) x[at + key] /= sum;
      x.fill(0, at + seen, at + length);
    }
  }

  /** @param {Matrix} dq @param {Matrix} dk @param {Matrix} dv @param {Matrix} dy */
  function backward(dq, dk, dv, dy) {
    dk.data.fill(0);
    dv.data.fill(0);
    for (const segment of segments) {
      const { count, length } = segment, all = places(segment);
      space.products(dShares, dy, v, { rows: count, columns: length, terms: size, down: wide, alongA: 1, alongB: 1, across: narrow, wide: length,
        adds: false, offsets: all.map(({ query, key, share }) => [query, key, share]) });
      for (const { share } of all) unsoftmax(dShares.data, shares.data, share, segment);
      space.products(dq, dShares, k, { rows: count, columns: size, terms: length, down: length, alongA: 1, alongB: narrow, across: 1, wide,
        adds: false, offsets: all.map(({ query, key, share }) => [share, key, query]) });
      const turned = { rows: length, columns: size, terms: count, down: 1, alongA: length, alongB: wide, across: 1, wide: narrow, adds: true,
        offsets: /** @type {[number, number, number][]} */ (all.map(({ query, key, share }) => [share, query, key])) };
      space.products(dk, dShares, q, turned);
      space.products(dv, shares, dy, turned);
    }
  }

  /** Gradients by shares to gradients by scores. @param {Float32Array} d @param {Float32Array} p @param {number} from @param {Segment} segment */
  function unsoftmax(d, p, from, { count, length, position }) {
    for (let query = 0, at = from; query < count; query += 1, at += length) {
      const seen = position + query + 1;
      let sum = 0;
      for (let key = 0; key < seen; key += 1) sum += d[at + key] * p[at + key];
      for (let key = 0; key < seen; key += 1) d[at + key] = scale * p[at + key] * (d[at + key] - sum);
      d.fill(0, at + seen, at + length);
    }
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
    const y = first(out, g.rows), to = y.data, s = sigmoids.data, from = g.data, by = u.data;
    for (let at = 0; at < to.length; at += 1) {
      const sigmoid = 1 / (1 + Math.exp(-from[at]));
      s[at] = sigmoid;
      to[at] = from[at] * sigmoid * by[at];
    }
    return y;
  }

  /** @param {Matrix} dg @param {Matrix} du @param {Matrix} dy */
  function backward(dg, du, dy) {
    const s = sigmoids.data, g = gate.data, u = up.data, d = dy.data, byGate = dg.data, byUp = du.data;
    for (let at = 0; at < d.length; at += 1) {
      const silu = g[at] * s[at];
      byUp[at] = d[at] * silu;
      byGate[at] = d[at] * u[at] * (s[at] + silu * (1 - s[at]));
    }
  }

  return { forward, backward };
}

module.exports = { attention, gated, linear, norm, rotate };
