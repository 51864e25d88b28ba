// @ts-check
// A WebAssembly module for matrix products, C = A B, written down instruction by instruction.
//
// Both factors are first copied into panels, whose numbers lie in the order in which they are multiplied; a tile of 2 × 16
// of C is then summed up in registers, over at most DEPTH terms at a time.
// Source: Goto and van de Geijn 2008, ACM TOMS 34(3).
"use strict";

const DEPTH = 256;
const FOUR = 4; // numbers of a vector, and rows or columns that are packed at once
const [HIGH, WIDE] = [2, 16]; // rows and columns of a tile
const HEADER = 10; // int32 of a description before its offsets

/** @typedef {number[]} Code instructions, encoded */

/** LEB128 of an integer. @param {number} value @param {boolean} [signed] @returns {Code} */
function leb(value, signed = false) {
  const bytes = [];
  for (;;) {
    const low = value & 0x7f;
    value >>= 7;
    const over = signed ? (value === 0 && !(low & 0x40)) || (value === -1 && !!(low & 0x40)) : value === 0;
    bytes.push(over ? low : low | 0x80);
    if (over) return bytes;
  }
}

const VOID = 0x40, I32 = 0x7f, V128 = 0x7b;
const vector = (/** @type {number} */ code) => [0xfd, ...leb(code)];
const constant = (/** @type {number} */ value) => [0x41, ...leb(value, true)];
const get = (/** @type {number} */ local) => [0x20, ...leb(local)];
const set = (/** @type {number} */ local, /** @type {Code} */ value) => [...value, 0x21, ...leb(local)];
const binary = (/** @type {number} */ code) => (/** @type {Code} */ x, /** @type {Code} */ y) => [...x, ...y, code];
const plus = binary(0x6a), minus = binary(0x6b), times = binary(0x6c), below = binary(0x49), equal = binary(0x46);
const both = binary(0x71);
const least = (/** @type {Code} */ x, /** @type {Code} */ y) => [...x, ...y, ...below(x, y), 0x1b];
const bump = (/** @type {number} */ local, /** @type {Code} */ by) => set(local, plus(get(local), by));
const loadInteger = (/** @type {Code} */ at, offset = 0) => [...at, 0x28, 2, ...leb(offset)];
const loadNumber = (/** @type {Code} */ at) => [...at, 0x2a, 2, 0];
const storeNumber = (/** @type {Code} */ at, /** @type {Code} */ value) => [...at, ...value, 0x38, 2, 0];
const load = (/** @type {Code} */ at, offset = 0) => [...at, ...vector(0), 2, ...leb(offset)];
const splat = (/** @type {Code} */ at, offset = 0) => [...at, ...vector(9), 2, ...leb(offset)];
const store = (/** @type {Code} */ at, /** @type {Code} */ value, offset = 0) => [...at, ...value, ...vector(11), 2, ...leb(offset)];
const ZERO = [...vector(12), ...Array(4 * FOUR).fill(0)];
const addNumbers = binary(0x92);
const add = (/** @type {Code} */ x, /** @type {Code} */ y) => [...x, ...y, ...vector(0xe4)];
const shuffled = (/** @type {number[]} */ lanes, /** @type {Code} */ x, /** @type {Code} */ y) =>
  [...x, ...y, ...vector(13), ...lanes.flatMap((lane) => [0, 1, 2, 3].map((byte) => 4 * lane + byte))];
const when = (/** @type {Code} */ test, /** @type {Code} */ yes, /** @type {Code} */ no = []) =>
  [...test, 0x04, VOID, ...yes, ...(no.length ? [0x05, ...no] : []), 0x0b];
/** While the local lies below the bound; the bound is looked at before the first round too. */
const loop = (/** @type {number} */ local, /** @type {Code} */ bound, /** @type {Code} */ body) =>
  when(below(get(local), bound), [0x03, VOID, ...body, ...below(get(local), bound), 0x0d, 0, 0x0b]);
const call = (/** @type {number} */ which, /** @type {Code[]} */ ...given) => [...given.flat(), 0x10, which];

/** Whether this WebAssembly multiplies and adds in one instruction. */
const fuses = () => WebAssembly.validate(assembled([{ takes: 0, integers: 0, vectors: 1, body: set(0, [...ZERO, ...ZERO, ...ZERO, ...vector(0x105)]) }]));

/**
 * pack(from, to, across, along, width, depth, stride): four numbers of each term, of which `width` are there. across,
 * along: bytes between neighbours of a term, and between terms; stride: between terms where they are packed.
 */
function pack() {
  const [from, to, across, along, width, depth, stride, term, x] = [0, 1, 2, 3, 4, 5, 6, 7, 8], rows = [9, 10, 11, 12, 13, 14, 15, 16];
  const whole = equal(get(width), constant(FOUR));
  const on = (/** @type {number} */ terms) => [
    ...bump(from, times(get(along), constant(terms))), ...bump(to, times(get(stride), constant(terms))), ...bump(term, constant(terms)),
  ];
  const copied = loop(term, get(depth), [...store(get(to), load(get(from))), ...on(1)]);
  const row = (/** @type {number} */ which) => plus(get(from), times(get(across), constant(which)));
  const line = (/** @type {number} */ which) => plus(get(to), times(get(stride), constant(which)));
  const [a, b, c, d, low, lower, high, higher] = rows;
  const turned = loop(term, both(get(depth), constant(-FOUR)), [
    ...[a, b, c, d].flatMap((local, which) => set(local, load(row(which)))),
    ...set(low, shuffled([0, 4, 1, 5], get(a), get(b))), ...set(lower, shuffled([0, 4, 1, 5], get(c), get(d))),
    ...set(high, shuffled([2, 6, 3, 7], get(a), get(b))), ...set(higher, shuffled([2, 6, 3, 7], get(c), get(d))),
    ...store(line(0), shuffled([0, 1, 4, 5], get(low), get(lower))), ...store(line(1), shuffled([2, 3, 6, 7], get(low), get(lower))),
    ...store(line(2), shuffled([0, 1, 4, 5], get(high), get(higher))), ...store(line(3), shuffled([2, 3, 6, 7], get(high), get(higher))),
    ...on(FOUR),
  ]);
  const single = loop(term, get(depth), [
    ...set(x, constant(0)),
    ...loop(x, get(width), [
      ...storeNumber(plus(get(to), times(get(x), constant(4))), loadNumber(plus(get(from), times(get(x), get(across))))), ...bump(x, constant(1)),
    ]),
    ...on(1),
  ]);
  const body = [
    ...when(both(whole, equal(get(along), constant(4))), turned), ...when(both(whole, equal(get(across), constant(4))), copied), ...single,
  ];
  return { takes: 7, integers: 2, vectors: 8, body };
}

/** tile(a, b, end, c, wide, first): a tile of C from panels of A, up to `end`, and of B; added to C unless first. @param {boolean} fused */
function tile(fused) {
  const addProduct = (/** @type {Code} */ sum, /** @type {Code} */ x, /** @type {Code} */ y) =>
    (fused ? [...x, ...y, ...sum, ...vector(0x105)] : add(sum, [...x, ...y, ...vector(0xe6)]));
  const [a, b, end, c, wide, first] = [0, 1, 2, 3, 4, 5], four = [0, 1, 2, 3], columns = [6, 7, 8, 9], x = 10;
  const sums = Array.from({ length: HIGH }, (_, row) => four.map((part) => 11 + 4 * row + part));
  const at = (/** @type {number} */ row) => plus(get(c), times(get(wide), constant(row)));
  const body = [
    ...loop(a, get(end), [ // unrolled, or as 4 × 8, it is slower in V8
      ...four.flatMap((part) => set(columns[part], load(get(b), 16 * part))),
      ...sums.flatMap((row, which) => [...set(x, splat(get(a), 4 * which)), ...row.flatMap((sum, part) => set(sum, addProduct(get(sum), get(x), get(columns[part]))))]),
      ...bump(a, constant(4 * FOUR)), ...bump(b, constant(4 * WIDE)),
    ]),
    ...when(get(first), [], sums.flatMap((row, which) => row.flatMap((sum, part) => set(sum, add(get(sum), load(at(which), 16 * part)))))),
    ...sums.flatMap((row, which) => row.flatMap((sum, part) => store(at(which), get(sum), 16 * part))),
  ];
  return { takes: 6, integers: 0, vectors: 5 + HIGH * 4, body };
}

/**
 * edge(from, c, wide, high, across, first): what of a tile lies within C. from: a tile without gaps.
 * high, across: rows and columns that lie within.
 */
function edge() {
  const [from, c, wide, high, across, first, row, column, at] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const value = loadNumber(plus(get(from), plus(times(get(row), constant(4 * WIDE)), times(get(column), constant(4)))));
  const body = loop(row, get(high), [
    ...set(column, constant(0)),
    ...loop(column, get(across), [
      ...set(at, plus(get(c), plus(times(get(row), get(wide)), times(get(column), constant(4))))),
      ...when(get(first), storeNumber(get(at), value), storeNumber(get(at), addNumbers(value, loadNumber(get(at))))),
      ...bump(column, constant(1)),
    ]),
    ...bump(row, constant(1)),
  ]);
  return { takes: 6, integers: 3, vectors: 0, body };
}

/** multiply(a, b, c, shape, room): all products of a description, see `described`. */
function multiply() {
  const [a, b, c, shape, room] = [0, 1, 2, 3, 4];
  const [outer, rows, columns, terms, down, alongA, alongB, across, wide, adds, product, term, depth,
    row, column, packedA, packedB, startA, startB, startC, at, entry, high, broad, first] = Array.from({ length: 25 }, (_, which) => 5 + which);
  const fours = (/** @type {number} */ from, /** @type {number} */ side, /** @type {number} */ sideways, /** @type {number} */ along, /** @type {Code} */ to, /** @type {number} */ stride) => [
    ...set(row, constant(0)),
    ...loop(row, get(side), [
      ...call(0, plus(plus(get(from), times(get(row), get(sideways))), times(get(term), get(along))), to, get(sideways), get(along),
        least(minus(get(side), get(row)), constant(FOUR)), get(depth), constant(stride)),
      ...bump(row, constant(FOUR)),
    ]),
  ];
  const panel = (/** @type {number} */ packed, /** @type {number} */ side) => // where a row or column lies in panels of `side`
    plus(get(packed), plus(times(both(get(row), constant(-side)), times(get(depth), constant(4))), times(both(get(row), constant(side - 1)), constant(4))));
  const factors = [get(startA), get(startB), plus(get(startA), times(get(depth), constant(4 * FOUR)))];
  const tiles = [
    ...set(column, constant(0)), ...set(startB, get(packedB)),
    ...loop(column, get(columns), [
      ...set(row, constant(0)), ...set(broad, least(minus(get(columns), get(column)), constant(WIDE))),
      ...loop(row, get(rows), [
        ...set(high, least(minus(get(rows), get(row)), constant(HIGH))), ...set(startA, panel(packedA, FOUR)),
        ...set(at, plus(get(startC), plus(times(get(row), get(wide)), times(get(column), constant(4))))),
        ...when(both(equal(get(high), constant(HIGH)), equal(get(broad), constant(WIDE))),
          call(1, ...factors, get(at), get(wide), get(first)),
          [...call(1, ...factors, get(room), constant(4 * WIDE), constant(1)), ...call(2, get(room), get(at), get(wide), get(high), get(broad), get(first))]),
        ...bump(row, constant(HIGH)),
      ]),
      ...bump(column, constant(WIDE)), ...bump(startB, times(get(depth), constant(4 * WIDE))),
    ]),
  ];
  const body = [
    ...[outer, rows, columns, terms, down, alongA, alongB, across, wide, adds].flatMap((local, which) => set(local, loadInteger(get(shape), 4 * which))),
    ...set(entry, plus(get(shape), constant(4 * HEADER))), ...set(packedA, plus(get(room), constant(4 * HIGH * WIDE))),
    ...loop(product, get(outer), [
      ...set(term, constant(0)),
      ...loop(term, get(terms), [
        ...set(depth, least(minus(get(terms), get(term)), constant(DEPTH))),
        ...set(packedB, plus(get(packedA), times(times(both(plus(get(rows), constant(FOUR - 1)), constant(-FOUR)), get(depth)), constant(4)))),
        ...set(first, both(equal(get(term), constant(0)), equal(get(adds), constant(0)))),
        ...set(startA, plus(get(a), loadInteger(get(entry)))), ...set(startB, plus(get(b), loadInteger(get(entry), 4))),
        ...set(startC, plus(get(c), loadInteger(get(entry), 8))),
        ...fours(startA, rows, down, alongA, panel(packedA, FOUR), 4 * FOUR),
        ...fours(startB, columns, across, alongB, panel(packedB, WIDE), 4 * WIDE),
        ...tiles,
        ...bump(term, constant(DEPTH)),
      ]),
      ...bump(entry, constant(12)), ...bump(product, constant(1)),
    ]),
  ];
  return { takes: 5, integers: 25, vectors: 0, body };
}

/**
 * A module that imports `env.memory` and exports the last function as `multiply`.
 * @param {{ takes: number, integers: number, vectors: number, body: Code }[]} functions
 */
function assembled(functions) {
  const list = (/** @type {Code[]} */ entries) => [...leb(entries.length), ...entries.flat()];
  const text = (/** @type {string} */ word) => [...leb(word.length), ...[...word].map((letter) => letter.charCodeAt(0))];
  const section = (/** @type {number} */ id, /** @type {Code} */ content) => [id, ...leb(content.length), ...content];
  const bodies = functions.map(({ integers, vectors, body }) => {
    const code = [...list([[...leb(integers), I32], [...leb(vectors), V128]]), ...body, 0x0b];
    return [...leb(code.length), ...code];
  });
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, list(functions.map(({ takes }) => [0x60, ...leb(takes), ...Array(takes).fill(I32), 0]))),
    ...section(2, list([[...text("env"), ...text("memory"), 2, 0, 0]])),
    ...section(3, list(functions.map((_, which) => leb(which)))),
    ...section(7, list([[...text("multiply"), 0, ...leb(functions.length - 1)]])),
    ...section(10, list(bodies)),
  ]);
}

/** The module's bytes. */
const productModule = () => assembled([pack(), tile(fuses()), edge(), multiply()]);

/**
 * Products: C[o] = A[o] B[o], or C[o] + A[o] B[o] where it adds, of (rows, terms) and (terms, columns), and where each A,
 * B and C begins, in numbers.
 * @typedef {{ rows: number, columns: number, terms: number, offsets: [number, number, number][] }} Sides
 */

/**
 * Numbers from a row of A to the next (down), from a term to the next (alongA, alongB), from a column of B to the next
 * (across), from a row of C to the next (wide).
 * @typedef {{ down: number, alongA: number, alongB: number, across: number, wide: number, adds: boolean }} Strides
 */

/** What `multiply` reads at `shape`. @param {Strides} strides @param {Sides} sides */
function described({ down, alongA, alongB, across, wide, adds }, { rows, columns, terms, offsets }) {
  const words = [offsets.length, rows, columns, terms, 4 * down, 4 * alongA, 4 * alongB, 4 * across, 4 * wide, Number(adds)];
  for (const [a, b, c] of offsets) words.push(4 * a, 4 * b, 4 * c);
  return words;
}

/** Bytes that `multiply` needs at `room` for products of these sides at most. @param {number} rows @param {number} columns */
const roomOf = (rows, columns) => 4 * (HIGH * WIDE + DEPTH * (rows + FOUR + columns + WIDE));

module.exports = { described, productModule, roomOf };
