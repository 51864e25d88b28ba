// @ts-check
// A space on a graphics processor, by WebGPU. The same words as arrays.js has: what a training says is written down as a
// list of kernels, which runs when something is read, all of it at once; nothing but what is read comes back.
"use strict";

const { EACH, PARTS, SIDE, floats, source } = require("./kernels.js");

/** @typedef {import("./arrays.js").Matrix} Matrix */
/** @typedef {import("./product.js").Sides} Sides */
/** @typedef {import("./product.js").Strides} Strides */
/** @typedef {import("./optimizer.js").Adam} Adam */
/** @typedef {import("./optimizer.js").Moved} Moved */
/** @typedef {import("./parts.js").Space} Space */

const FOUR = 4; // bytes of a number
const GIVEN = 256; // bytes between two kernels' words, the least that WebGPU allows everywhere
const WORDS = 16; // that a kernel is given at most
const MOST = 4096; // kernels of a list
const LISTED = 1 << 18; // indices of a list
const [STORAGE, UNIFORM, READ, COPY_FROM, COPY_TO] = [0x80, 0x40, 0x01, 0x04, 0x08]; // of GPUBufferUsage and GPUMapMode

const groupsOf = (/** @type {number} */ count, /** @type {number} */ each) => Math.ceil(count / each);

/**
 * A space on this browser's graphics processor, and how to be rid of it. Raises an error where there is none.
 * @returns {Promise<{ space: Space, end: () => void }>}
 */
async function graphics() {
  const adapter = await /** @type {any} */ (navigator).gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("There is no graphics processor.");
  const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
  const device = await adapter.requestDevice({ requiredLimits: { maxBufferSize, maxStorageBufferBindingSize } });
  /** @type {string | undefined} */
  let trouble;
  device.addEventListener("uncapturederror", (/** @type {any} */ { error }) => { trouble ??= error.message; });
  const layout = device.createBindGroupLayout({ entries: [{ type: "storage" }, { type: "uniform", hasDynamicOffset: true }, { type: "read-only-storage" }]
    .map((buffer, binding) => ({ binding, visibility: 4, buffer })) });
  const module = device.createShaderModule({ code: source }), pipelineLayout = device.createPipelineLayout({ bindGroupLayouts: [layout] });
  const pipelines = Object.fromEntries(await Promise.all(Object.keys(floats).map(async (name) =>
    [name, await device.createComputePipelineAsync({ layout: pipelineLayout, compute: { module, entryPoint: `k_${name}` } })])));
  const buffer = (/** @type {number} */ size, /** @type {number} */ usage) => device.createBuffer({ size, usage });
  return { space: spaceOn(device, layout, pipelines, buffer, () => trouble), end: () => device.destroy() };
}

/**
 * @param {any} device @param {any} layout @param {Record<string, any>} pipelines
 * @param {(size: number, usage: number) => any} buffer @param {() => string | undefined} trouble what the device complained of
 * @returns {Space}
 */
function spaceOn(device, layout, pipelines, buffer, trouble) {
  const givenBuffer = buffer(MOST * GIVEN, UNIFORM | COPY_TO), listBuffer = buffer(FOUR * LISTED, STORAGE | COPY_TO);
  const words = new Uint32Array((MOST * GIVEN) / FOUR), numbers = new Float32Array(words.buffer), lists = new Int32Array(LISTED);
  /** @type {[any, [number, number, number]][]} */
  let calls = [];
  let listed = 0, known = /** @type {Map<ArrayLike<number>, number>} */ (new Map());
  let end = 0, memory = /** @type {any} */ (undefined), back = /** @type {any} */ (undefined), bound = /** @type {any} */ (undefined);
  /** @type {[Matrix, Float32Array | undefined][]} */
  let asked = [];
  let sums = /** @type {Matrix} */ ({}); // of squares, of what is trained

  function reset() {
    memory?.destroy();
    [calls, asked, end, listed, memory] = [[], [], 0, 0, undefined];
    known.clear();
  }

  /** @param {number} rows @param {number} columns @param {Float32Array} [content] @returns {Matrix} */
  function array(rows, columns, content) {
    const matrix = { rows, columns, at: end, data: new Float32Array(0) };
    end += FOUR * rows * columns;
    asked.push([matrix, content]);
    return matrix;
  }

  function settled() {
    sums = { rows: asked.length, columns: PARTS, at: end, data: new Float32Array(0) };
    end += FOUR * length(sums);
    const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
    if (end > Math.min(maxBufferSize, maxStorageBufferBindingSize)) throw new RangeError("The graphics processor has too little memory.");
    memory = buffer(end, STORAGE | COPY_FROM | COPY_TO);
    bound = device.createBindGroup({ layout, entries: [{ buffer: memory }, { buffer: givenBuffer, size: WORDS * FOUR }, { buffer: listBuffer }]
      .map((resource, binding) => ({ binding, resource })) });
    for (const [matrix, content] of asked) if (content) write(matrix, content);
    asked = [];
  }

  /** @param {Matrix} matrix @param {Float32Array} content */
  const write = ({ at }, content) => device.queue.writeBuffer(memory, at, content);

  // ---- the list of kernels

  /** Write a kernel down: its words, floats among them, and its groups. @param {string} name @param {number[]} given @param {number} x @param {number} [y] @param {number} [z] */
  function call(name, given, x, y = 1, z = 1) {
    const from = (calls.length * GIVEN) / FOUR, floating = floats[name];
    given.forEach((word, at) => { (floating[at] ? numbers : words)[from + at] = word; });
    calls.push([pipelines[name], [x, y, z]]);
    if (calls.length === MOST) submit();
  }

  /** A kernel with a lane for each of `count` numbers. @param {string} name @param {number} count @param {number[]} given */
  const each = (name, count, ...given) => { if (count) call(name, [count, ...given], groupsOf(count, EACH)); };

  /** Where a list lies for the kernel that is written down next. @param {ArrayLike<number>} list */
  function place(list) {
    const there = known.get(list);
    if (there !== undefined) return there;
    if (listed + list.length > LISTED) submit();
    const at = listed;
    lists.set(list, at);
    known.set(list, at);
    listed += list.length;
    return at;
  }

  /** Have the list run. @param {(encoder: any) => void} [then] what follows it */
  function submit(then) {
    device.queue.writeBuffer(givenBuffer, 0, words, 0, (calls.length * GIVEN) / FOUR);
    device.queue.writeBuffer(listBuffer, 0, lists, 0, listed);
    const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass();
    calls.forEach(([pipeline, groups], at) => {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bound, [at * GIVEN]);
      pass.dispatchWorkgroups(...groups);
    });
    pass.end();
    then?.(encoder);
    device.queue.submit([encoder.finish()]);
    [calls, listed] = [[], 0];
    known.clear();
  }

  /** What lies in matrices, once all that was written down has run. Raises an error if the device is lost. @param {Matrix[]} matrices */
  async function read(matrices) {
    const sizes = matrices.map(({ rows, columns }) => FOUR * rows * columns), size = sizes.reduce((sum, bytes) => sum + bytes, 0);
    if (!(back?.size >= size)) {
      back?.destroy();
      back = buffer(size, READ | COPY_TO);
    }
    submit((encoder) => {
      let to = 0;
      matrices.forEach(({ at }, which) => {
        encoder.copyBufferToBuffer(memory, at, back, to, sizes[which]);
        to += sizes[which];
      });
    });
    await back.mapAsync(READ, 0, size);
    const bytes = back.getMappedRange(0, size).slice(0);
    back.unmap();
    const message = trouble();
    if (message) throw new Error(message);
    let from = 0;
    return sizes.map((length) => {
      from += length;
      return new Float32Array(bytes, from - length, length / FOUR);
    });
  }

  // ---- what a step does, in words: where a matrix begins, how long it is

  const word = (/** @type {Matrix} */ { at }) => at / FOUR;
  const length = (/** @type {Matrix} */ { rows, columns }) => rows * columns;

  /** @param {Matrix} c @param {Matrix} a @param {Matrix} b @param {Strides} strides @param {Sides[]} parts */
  function products(c, a, b, { down, alongA, alongB, across, wide, adds }, parts) {
    const table = parts.flatMap(({ rows, columns, terms, offsets }) => offsets.flatMap((offset) => [rows, columns, terms, ...offset]));
    const [rows, columns] = [Math.max(...parts.map((part) => part.rows)), Math.max(...parts.map((part) => part.columns))];
    call("products", [word(c), word(a), word(b), place(table), down, alongA, alongB, across, wide, Number(adds)],
      groupsOf(columns, SIDE), groupsOf(rows, SIDE), table.length / 6);
  }

  /** @type {Space["product"]} */
  function product(c, a, b, turned = "", adds = false) {
    if (!length(c)) return;
    const [down, alongA] = turned === "a" ? [1, a.columns] : [a.columns, 1], [alongB, across] = turned === "b" ? [1, b.columns] : [b.columns, 1];
    const terms = turned === "a" ? a.rows : a.columns;
    products(c, a, b, { down, alongA, alongB, across, wide: c.columns, adds }, [{ rows: c.rows, columns: c.columns, terms, offsets: [[0, 0, 0]] }]);
  }

  /** Rows that are added to, each with the first that is added and, for each, the next, −1 after the last. @param {Int32Array} picked */
  function chainsOf(picked) {
    /** @type {Map<number, number>} */
    const starts = new Map();
    const next = new Int32Array(picked.length);
    for (let at = picked.length - 1; at >= 0; at -= 1) {
      next[at] = starts.get(picked[at]) ?? -1;
      starts.set(picked[at], at);
    }
    starts.delete(-1);
    return { count: starts.size, list: [...[...starts].flat(), ...next] };
  }

  const tableOf = (/** @type {Moved[]} */ moved) =>
    moved.flatMap(({ value, gradient, first, second }) => [...[value, gradient, first, second].map(word), length(value)]);

  return {
    array, product, products, read, reset, settled, write,
    filled: (x, value) => each("filled", length(x), word(x), value),
    copied: (y, x) => each("copied", length(y), word(y), word(x)),
    times: (x, factor) => each("times", length(x), word(x), factor),
    scaled: (y, x, l) => each("scaled", length(y), word(y), word(x), word(l), y.columns),
    summed: (sum, x, y) => each("summed", x.columns, word(sum), word(x), word(y), x.rows),
    normed: (y, factors, x, gain, epsilon) => call("normed", [word(y), word(factors), word(x), word(gain), x.columns, epsilon], x.rows),
    unnormed: (dx, dy, x, gain, factors) => call("unnormed", [word(dx), word(dy), word(x), word(gain), word(factors), dy.columns], dy.rows),
    gained: (dGain, dy, x, factors) => each("gained", dy.columns, word(dGain), word(dy), word(x), word(factors), dy.rows),
    rotated: (x, positions, { cos, sin }, way) =>
      each("rotated", length(x) / 2, word(x), place(positions), word(cos), word(sin), cos.columns, x.columns / 2, way),
    softmax: (scores, positions, scale) =>
      call("softmax", [word(scores), place(positions), scores.rows / positions.length, scores.columns, scale], scores.rows),
    unsoftmax: (d, shares, positions, scale) =>
      call("unsoftmax", [word(d), word(shares), place(positions), d.rows / positions.length, d.columns, scale], d.rows),
    gated: (y, sigmoids, gate, up) => each("gated", length(y), word(y), word(sigmoids), word(gate), word(up)),
    ungated: (dGate, dUp, dy, sigmoids, gate, up) =>
      each("ungated", length(dy), word(dGate), word(dUp), word(dy), word(sigmoids), word(gate), word(up)),
    gathered: (to, from, picked) => each("gathered", picked.length * from.columns, word(to), word(from), place(picked), from.columns),
    scattered(to, from, picked) {
      const { count, list } = chainsOf(picked), chains = place(list);
      each("scattered", count * from.columns, word(to), word(from), chains, chains + 2 * count, from.columns);
    },
    crossEntropy: (losses, scores, targets) =>
      call("crossEntropy", [word(losses), word(scores), place(targets), scores.columns, targets.length], targets.length),
    clipped(kept, moved, most, beside) {
      call("squared", [place(tableOf(moved)), word(sums)], PARTS, moved.length);
      call("clipped", [word(kept), word(sums), PARTS * moved.length, most, beside], 1);
    },
    stepped(moved, kept, { beta1, beta2, epsilon, far, root }) {
      const longest = Math.max(...moved.map(({ value }) => length(value)));
      call("stepped", [longest, place(tableOf(moved)), word(kept), beta1, 1 - beta1, beta2, 1 - beta2, epsilon, far, root], groupsOf(longest, EACH), moved.length);
    },
  };
}

module.exports = { graphics };
