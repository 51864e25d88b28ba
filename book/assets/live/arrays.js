// @ts-check
// Matrices in one WebAssembly memory, their products, and all that a step does with them: a space.
"use strict";

const loops = require("./loops.js");
const { described, productModule, roomOf } = require("./product.js");

/** @typedef {import("./product.js").Sides} Sides */
/** @typedef {import("./product.js").Strides} Strides */
/** @typedef {import("./weights.js").Tensor} Tensor */

/**
 * A matrix of float32, row by row; `at` is its address. Of one that lies on a graphics processor `data` is empty.
 * @typedef {{ rows: number, columns: number, at: number, data: Float32Array }} Matrix
 */

/** What is trained, with its gradient, or what stays, without. @typedef {{ value: Matrix, gradient?: Matrix }} Parameter */

const PAGE = 65536;
const ALIGNED = 64;
const DESCRIPTION = 4096; // bytes at address 0

/** The first rows of a matrix. @param {Matrix} matrix @param {number} rows @returns {Matrix} */
const first = ({ columns, at, data }, rows) => ({ rows, columns, at, data: data.subarray(0, rows * columns) });

/**
 * A memory for one training at a time: first all its matrices are asked for, then `settled` gives them their place.
 * Raises a RangeError where there is less memory, a WebAssembly.CompileError where there are no vector instructions.
 */
function space() {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { multiply } = /** @type {any} */ (new WebAssembly.Instance(new WebAssembly.Module(productModule()), { env: { memory } }).exports);
  let end = DESCRIPTION, room = 0, words = new Int32Array(memory.buffer, 0, DESCRIPTION / 4);
  /** @type {[Matrix, Float32Array | undefined][]} */
  let asked = [];

  function reset() {
    end = DESCRIPTION;
    asked = [];
  }

  /** A matrix of zeros, or with the tensor's values; it may be used once `settled` was called. @param {number} rows @param {number} columns @param {Float32Array} [content] @returns {Matrix} */
  function array(rows, columns, content) {
    const matrix = { rows, columns, at: end, data: new Float32Array(0) };
    end += ALIGNED * Math.ceil((4 * rows * columns) / ALIGNED);
    asked.push([matrix, content]);
    return matrix;
  }

  /** Give all matrices their place. rows, columns: the largest sides of a product. @param {number} rows @param {number} columns */
  function settled(rows, columns) {
    room = end;
    const missing = Math.ceil((end + roomOf(rows, columns) - memory.buffer.byteLength) / PAGE);
    if (missing > 0) memory.grow(missing);
    words = new Int32Array(memory.buffer, 0, DESCRIPTION / 4);
    for (const [matrix, content] of asked) {
      matrix.data = new Float32Array(memory.buffer, matrix.at, matrix.rows * matrix.columns);
      if (content) matrix.data.set(content);
      else matrix.data.fill(0);
    }
    asked = [];
  }

  /** Several products, between parts of matrices; no two of them write to the same place. @param {Matrix} c @param {Matrix} a @param {Matrix} b @param {Strides} strides @param {Sides[]} parts */
  function products(c, a, b, strides, parts) {
    for (const part of parts) {
      words.set(described(strides, part));
      multiply(a.at, b.at, c.at, 0, room);
    }
  }

  /**
   * C = A B, or C + A B. turned: which of A and B are to be transposed first.
   * @param {Matrix} c @param {Matrix} a @param {Matrix} b @param {"" | "a" | "b"} turned @param {boolean} adds
   */
  function product(c, a, b, turned = "", adds = false) {
    const [down, alongA] = turned === "a" ? [1, a.columns] : [a.columns, 1], [alongB, across] = turned === "b" ? [1, b.columns] : [b.columns, 1];
    const terms = turned === "a" ? a.rows : a.columns;
    products(c, a, b, { down, alongA, alongB, across, wide: c.columns, adds }, [{ rows: c.rows, columns: c.columns, terms, offsets: [[0, 0, 0]] }]);
  }

  /** What lies in matrices: copies, which a graphics processor gives later. @param {Matrix[]} matrices @returns {Float32Array[] | Promise<Float32Array[]>} */
  const read = (matrices) => matrices.map(({ data }) => data.slice());

  /** @param {Matrix} matrix @param {Float32Array} content */
  const write = ({ data }, content) => data.set(content);

  return { ...loops, array, product, products, read, reset, settled, write };
}

module.exports = { first, space };
