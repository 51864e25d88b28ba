// @ts-check
// What a step does beside products, number by number, on matrices in WebAssembly's memory. Where a graphics processor
// trains, kernels.js does the same under the same names.
"use strict";

/** @typedef {import("./arrays.js").Matrix} Matrix */
/** @typedef {import("./optimizer.js").Moved} Moved */
/** @typedef {import("./optimizer.js").Adam} Adam */

/** @param {Matrix} x @param {number} value */
const filled = ({ data: x }, value) => { x.fill(value); };

/** y = x. @param {Matrix} y @param {Matrix} x */
const copied = ({ data: y }, { data: x }) => { y.set(x); };

/** x ← factor x. @param {Matrix} x @param {number} factor */
function times({ data: x }, factor) {
  for (let at = 0; at < x.length; at += 1) x[at] *= factor;
}

/** y = x ⊙ l, for each row. @param {Matrix} y @param {Matrix} x @param {Matrix} l */
function scaled({ data: y, columns }, { data: x }, { data: l }) {
  for (let at = 0; at < y.length; at += 1) y[at] = x[at] * l[at % columns];
}

/** Σ over rows of x ⊙ y. @param {Matrix} sum @param {Matrix} x @param {Matrix} y */
function summed({ data: sum }, { data: x, columns }, { data: y }) {
  sum.fill(0);
  for (let at = 0; at < x.length; at += 1) sum[at % columns] += x[at] * y[at];
}

/** y = x ⊙ gain / √(mean x² + ε) of each row, and that factor. @param {Matrix} y @param {Matrix} factors @param {Matrix} x @param {Matrix} gain @param {number} epsilon */
function normed({ data: y }, { data: factors }, { data: x, rows, columns }, { data: gain }, epsilon) {
  for (let row = 0, at = 0; row < rows; row += 1, at += columns) {
    let sum = 0;
    for (let column = 0; column < columns; column += 1) sum += x[at + column] * x[at + column];
    const factor = 1 / Math.sqrt(sum / columns + epsilon);
    for (let column = 0; column < columns; column += 1) y[at + column] = x[at + column] * factor * gain[column];
    factors[row] = factor;
  }
}

/** dx + the gradient by x of `normed`. @param {Matrix} dx @param {Matrix} dy @param {Matrix} x @param {Matrix} gain @param {Matrix} factors */
function unnormed({ data: dx }, { data: dy, rows, columns }, { data: x }, { data: gain }, { data: factors }) {
  for (let row = 0, at = 0; row < rows; row += 1, at += columns) {
    const factor = factors[row];
    let sum = 0;
    for (let column = 0; column < columns; column += 1) sum += gain[column] * dy[at + column] * x[at + column];
    const pull = (sum * factor ** 3) / columns;
    for (let column = 0; column < columns; column += 1) dx[at + column] += factor * gain[column] * dy[at + column] - pull * x[at + column];
  }
}

/** The gradient by the gain of `normed`. @param {Matrix} dGain @param {Matrix} dy @param {Matrix} x @param {Matrix} factors */
function gained({ data: dGain }, { data: dy, rows, columns }, { data: x }, { data: factors }) {
  dGain.fill(0);
  for (let row = 0, at = 0; row < rows; row += 1, at += columns) {
    for (let column = 0; column < columns; column += 1) dGain[column] += dy[at + column] * x[at + column] * factors[row];
  }
}

/**
 * Turn pairs of a head's numbers by their position's angles, or back.
 * @param {Matrix} x @param {Int32Array} positions of its rows @param {{ cos: Matrix, sin: Matrix }} table of half a head's width @param {1 | -1} way
 */
function rotated({ data, rows, columns }, positions, { cos: { data: cos, columns: half }, sin: { data: sin } }, way) {
  for (let row = 0; row < rows; row += 1) for (let head = row * columns; head < (row + 1) * columns; head += 2 * half) {
    for (let pair = 0, angle = positions[row] * half; pair < half; pair += 1, angle += 1) {
      const x = data[head + pair], y = data[head + pair + half], c = cos[angle], s = way * sin[angle];
      data[head + pair] = x * c - y * s;
      data[head + pair + half] = y * c + x * s;
    }
  }
}

/**
 * Scores to shares of what a query may see: all keys up to its own position. A row for each query and head.
 * @param {Matrix} scores @param {Int32Array} positions of the queries @param {number} scale
 */
function softmax({ data: x, rows, columns }, positions, scale) {
  const heads = rows / positions.length;
  for (let row = 0, at = 0; row < rows; row += 1, at += columns) {
    const seen = positions[Math.floor(row / heads)] + 1;
    let most = -Infinity, sum = 0;
    for (let key = 0; key < seen; key += 1) most = Math.max(most, x[at + key]);
    for (let key = 0; key < seen; key += 1) sum += x[at + key] = Math.exp(scale * (x[at + key] - most));
    for (let key = 0; key < seen; key += 1) x[at + key] /= sum;
    x.fill(0, at + seen, at + columns);
  }
}

/** Gradients by shares to gradients by scores. @param {Matrix} d @param {Matrix} shares @param {Int32Array} positions @param {number} scale */
function unsoftmax({ data: d, rows, columns }, { data: p }, positions, scale) {
  const heads = rows / positions.length;
  for (let row = 0, at = 0; row < rows; row += 1, at += columns) {
    const seen = positions[Math.floor(row / heads)] + 1;
    let sum = 0;
    for (let key = 0; key < seen; key += 1) sum += d[at + key] * p[at + key];
    for (let key = 0; key < seen; key += 1) d[at + key] = scale * p[at + key] * (d[at + key] - sum);
    d.fill(0, at + seen, at + columns);
  }
}

/** y = silu(gate) ⊙ up, and the sigmoids of the gate. @param {Matrix} y @param {Matrix} sigmoids @param {Matrix} gate @param {Matrix} up */
function gated({ data: y }, { data: sigmoids }, { data: gate }, { data: up }) {
  for (let at = 0; at < y.length; at += 1) {
    const sigmoid = 1 / (1 + Math.exp(-gate[at]));
    sigmoids[at] = sigmoid;
    y[at] = gate[at] * sigmoid * up[at];
  }
}

/** Gradients by the gate and by what it lets through. @param {Matrix} dGate @param {Matrix} dUp @param {Matrix} dy @param {Matrix} sigmoids @param {Matrix} gate @param {Matrix} up */
function ungated({ data: dGate }, { data: dUp }, { data: dy }, { data: s }, { data: gate }, { data: up }) {
  for (let at = 0; at < dy.length; at += 1) {
    const silu = gate[at] * s[at];
    dUp[at] = dy[at] * silu;
    dGate[at] = dy[at] * up[at] * (s[at] + silu * (1 - s[at]));
  }
}

/** Chosen rows of a matrix, one after another; where none is chosen, −1, the row stays. @param {Matrix} to @param {Matrix} from @param {Int32Array} picked */
function gathered({ data: to }, { data: from, columns }, picked) {
  picked.forEach((row, at) => { if (row >= 0) to.set(from.subarray(row * columns, (row + 1) * columns), at * columns); });
}

/** Add rows to chosen rows of a matrix. @param {Matrix} to @param {Matrix} from @param {Int32Array} picked */
function scattered({ data: to }, { data: from, columns }, picked) {
  picked.forEach((row, at) => {
    for (let column = 0; row >= 0 && column < columns; column += 1) to[row * columns + column] += from[at * columns + column];
  });
}

/**
 * Of each row log Σ exp(scores) − scores[target]; the scores become the gradients of the rows' mean.
 * @param {Matrix} losses @param {Matrix} scores @param {Int32Array} targets
 */
function crossEntropy({ data: losses }, { data, columns }, targets) {
  targets.forEach((target, row) => {
    const line = data.subarray(row * columns, (row + 1) * columns);
    let most = -Infinity, total = 0;
    for (const score of line) most = Math.max(most, score);
    for (const score of line) total += Math.exp(score - most);
    losses[row] = Math.log(total) - (line[target] - most);
    for (let at = 0; at < columns; at += 1) line[at] = Math.exp(line[at] - most) / total / targets.length;
    line[target] -= 1 / targets.length;
  });
}

/** The factor by which the norm of all gradients comes down to `most`, 1 at most. @param {Matrix} kept @param {Moved[]} moved @param {number} most @param {number} beside added to the norm */
function clipped({ data: kept }, moved, most, beside) {
  let square = 0;
  for (const { gradient } of moved) for (const g of gradient.data) square += g * g;
  kept[0] = Math.min(1, most / (Math.sqrt(square) + beside));
}

/** Adam's step. @param {Moved[]} moved @param {Matrix} kept the gradients' factor @param {Adam} adam */
function stepped(moved, { data: [kept] }, { beta1, beta2, epsilon, far, root }) {
  for (const { value: { data: values }, gradient: { data: gradient }, first: { data: first }, second: { data: second } } of moved) {
    for (let at = 0; at < values.length; at += 1) {
      const g = kept * gradient[at], m = beta1 * first[at] + (1 - beta1) * g, v = beta2 * second[at] + (1 - beta2) * g * g;
      first[at] = m;
      second[at] = v;
      values[at] -= (far * m) / (Math.sqrt(v) * root + epsilon);
    }
  }
}

module.exports = {
  clipped, copied, crossEntropy, filled, gained, gated, gathered, normed, rotated, scaled, scattered, softmax, stepped, summed, times,
  ungated, unnormed, unsoftmax,
};
