// @ts-check
// What loops.js and product.js compute, written for a graphics processor in WGSL, the shading language of WebGPU.
//
// All numbers lie in one memory `m`, whose words a kernel finds by the offsets that it is given; lists of indices lie in
// `n`. A kernel's first words say what it is given, in order; "f:" marks a number that is none of an offset.
"use strict";

const LANES = 64; // of a group that works on a row or a tile
const EACH = 256; // of a group whose lanes have a number each
const SIDE = 32; // rows and columns of a tile of a product
const DEEP = 16; // terms that are loaded at once
const PARTS = 32; // groups that sum one gradient's squares
const ENTRY = 6; // words of a product's description
const MOVED = 5; // words of what is trained: value, gradient, moments, length

/** One lane a number, `i`. @type {Record<string, [string, string]>} */
const numbers = {
  filled: ["x f:value", "m[x + i] = value;"],
  copied: ["y x", "m[y + i] = m[x + i];"],
  times: ["x f:factor", "m[x + i] *= factor;"],
  scaled: ["y x l columns", "m[y + i] = m[x + i] * m[l + i % columns];"],
  summed: ["sum x y rows", `
    var s = 0.0;
    for (var at = i; at < rows * count; at += count) { s += m[x + at] * m[y + at]; }
    m[sum + i] = s;`],
  gained: ["sum x y factors rows", `
    var s = 0.0;
    for (var row = 0u; row < rows; row++) { let at = row * count + i; s += m[x + at] * m[y + at] * m[factors + row]; }
    m[sum + i] = s;`],
  rotated: ["x positions cos sin half pairs f:way", `
    let pair = i % half;
    let head = x + i / half * 2 * half + pair;
    let angle = u32(n[positions + i / pairs]) * half + pair;
    let a = m[head];
    let b = m[head + half];
    let c = m[cos + angle];
    let s = way * m[sin + angle];
    m[head] = a * c - b * s;
    m[head + half] = b * c + a * s;`],
  gated: ["y s gate up", `
    let sigmoid = 1.0 / (1.0 + exp(min(-m[gate + i], 80.0)));
    m[s + i] = sigmoid;
    m[y + i] = m[gate + i] * sigmoid * m[up + i];`],
  ungated: ["dGate dUp dy s gate up", `
    let silu = m[gate + i] * m[s + i];
    m[dUp + i] = m[dy + i] * silu;
    m[dGate + i] = m[dy + i] * m[up + i] * (m[s + i] + silu * (1.0 - m[s + i]));`],
  gathered: ["y x picked columns", `
    let row = n[picked + i / columns];
    if (row >= 0) { m[y + i] = m[x + u32(row) * columns + i % columns]; }`],
  // a list of rows and of the first that is added to each, then of each its next: no two lanes write to one place
  scattered: ["y x chains next columns", `
    let column = i % columns;
    let chain = chains + 2 * (i / columns);
    var s = 0.0;
    for (var at = n[chain + 1]; at >= 0; at = n[next + u32(at)]) { s += m[x + u32(at) * columns + column]; }
    m[y + u32(n[chain]) * columns + column] += s;`],
  stepped: ["table kept f:beta1 f:rest1 f:beta2 f:rest2 f:epsilon f:far f:root", `
    let entry = table + w.y * ${MOVED};
    if (i >= u32(n[entry + 4])) { return; }
    let first = u32(n[entry + 2]) + i;
    let second = u32(n[entry + 3]) + i;
    let g = m[kept] * m[u32(n[entry + 1]) + i];
    let a = beta1 * m[first] + rest1 * g;
    let b = beta2 * m[second] + rest2 * g * g;
    m[first] = a;
    m[second] = b;
    m[u32(n[entry]) + i] -= far * a / (sqrt(b) * root + epsilon);`],
};

const all = (/** @type {string} */ body, bound = "columns") => `for (var at = t; at < ${bound}; at += ${LANES}u) { ${body} }`;

/** One group a row. @type {Record<string, [string, string]>} */
const groups = {
  normed: ["y factors x gain columns f:epsilon", `
    let row = w.x * columns;
    var s = 0.0;
    ${all("s += m[x + row + at] * m[x + row + at];")}
    let factor = 1.0 / sqrt(total(s, t) / f32(columns) + epsilon);
    ${all("m[y + row + at] = m[x + row + at] * factor * m[gain + at];")}
    if (t == 0) { m[factors + w.x] = factor; }`],
  unnormed: ["dx dy x gain factors columns", `
    let row = w.x * columns;
    let factor = m[factors + w.x];
    var s = 0.0;
    ${all("s += m[gain + at] * m[dy + row + at] * m[x + row + at];")}
    let pull = total(s, t) * factor * factor * factor / f32(columns);
    ${all("m[dx + row + at] += factor * m[gain + at] * m[dy + row + at] - pull * m[x + row + at];")}`],
  softmax: ["scores positions heads longest f:scale", `
    let row = scores + w.x * longest;
    let seen = u32(n[positions + w.x / heads]) + 1;
    var high = -3e38;
    ${all("high = max(high, m[row + at]);", "seen")}
    let most = highest(high, t);
    var s = 0.0;
    ${all("let e = exp(scale * (m[row + at] - most)); m[row + at] = e; s += e;", "seen")}
    let sum = total(s, t);
    ${all("if (at < seen) { m[row + at] /= sum; } else { m[row + at] = 0.0; }", "longest")}`],
  unsoftmax: ["d p positions heads longest f:scale", `
    let row = w.x * longest;
    let seen = u32(n[positions + w.x / heads]) + 1;
    var s = 0.0;
    ${all("s += m[d + row + at] * m[p + row + at];", "seen")}
    let sum = total(s, t);
    ${all("if (at < seen) { m[d + row + at] = scale * m[p + row + at] * (m[d + row + at] - sum); } else { m[d + row + at] = 0.0; }", "longest")}`],
  crossEntropy: ["losses scores targets columns f:count", `
    let row = scores + w.x * columns;
    let hit = u32(n[targets + w.x]);
    var high = -3e38;
    ${all("high = max(high, m[row + at]);")}
    let most = highest(high, t);
    var s = 0.0;
    ${all("s += exp(m[row + at] - most);")}
    let sum = total(s, t);
    ${all(`
      let score = m[row + at] - most;
      var share = exp(score) / sum;
      if (at == hit) { m[losses + w.x] = log(sum) - score; share -= 1.0; }
      m[row + at] = share / count;`)}`],
  squared: ["table sums", `
    let entry = table + w.y * ${MOVED};
    let gradient = u32(n[entry + 1]);
    let length = u32(n[entry + 4]);
    var s = 0.0;
    for (var at = w.x * ${LANES} + t; at < length; at += ${LANES * PARTS}) { s += m[gradient + at] * m[gradient + at]; }
    let sum = total(s, t);
    if (t == 0) { m[sums + w.y * ${PARTS} + w.x] = sum; }`],
  clipped: ["kept sums length f:most f:beside", `
    var s = 0.0;
    ${all("s += m[sums + at];", "length")}
    let square = total(s, t);
    if (t == 0) { m[kept] = min(1.0, most / (sqrt(square) + beside)); }`],
  // a tile of C: a lane sums 4 × 4 of its numbers, and all lanes load what is multiplied
  products: ["c a b table down alongA alongB across wide adds", `
    let entry = table + w.z * ${ENTRY};
    let rows = u32(n[entry]);
    let columns = u32(n[entry + 1]);
    let terms = u32(n[entry + 2]);
    let row0 = w.y * ${SIDE};
    let column0 = w.x * ${SIDE};
    if (row0 >= rows || column0 >= columns) { return; }
    let fromA = a + u32(n[entry + 3]);
    let fromB = b + u32(n[entry + 4]);
    let toC = c + u32(n[entry + 5]);
    let row = t / 8 * 4;
    let column = t % 8 * 4;
    var sums = array<vec4f, 4>();
    for (var term0 = 0u; term0 < terms; term0 += ${DEEP}) {
      for (var e = t; e < ${SIDE * DEEP}; e += ${LANES}) {
        let k = e % ${DEEP};
        let l = e / ${DEEP};
        let kA = select(e / ${SIDE}, k, alongA == 1);
        let rA = select(e % ${SIDE}, l, alongA == 1);
        let kB = select(e / ${SIDE}, k, alongB == 1);
        let cB = select(e % ${SIDE}, l, alongB == 1);
        var x = 0.0;
        var y = 0.0;
        if (row0 + rA < rows && term0 + kA < terms) { x = m[fromA + (row0 + rA) * down + (term0 + kA) * alongA]; }
        if (column0 + cB < columns && term0 + kB < terms) { y = m[fromB + (term0 + kB) * alongB + (column0 + cB) * across]; }
        left[kA * ${SIDE + 1} + rA] = x;
        right[kB * ${SIDE + 1} + cB] = y;
      }
      workgroupBarrier();
      for (var k = 0u; k < ${DEEP}; k++) {
        let r = k * ${SIDE + 1} + row;
        let q = k * ${SIDE + 1} + column;
        let line = vec4f(right[q], right[q + 1], right[q + 2], right[q + 3]);
        sums[0] += left[r] * line;
        sums[1] += left[r + 1] * line;
        sums[2] += left[r + 2] * line;
        sums[3] += left[r + 3] * line;
      }
      workgroupBarrier();
    }
    for (var i = 0u; i < 4; i++) { for (var j = 0u; j < 4; j++) {
      if (row0 + row + i < rows && column0 + column + j < columns) {
        let at = toC + (row0 + row + i) * wide + column0 + column + j;
        if (adds == 1) { m[at] += sums[i][j]; } else { m[at] = sums[i][j]; }
      }
    } }`],
};

const reduced = (/** @type {string} */ name, /** @type {string} */ both) => `
fn ${name}(x: f32, t: u32) -> f32 {
  lanes[t] = x;
  workgroupBarrier();
  for (var far = ${LANES / 2}u; far > 0; far /= 2) {
    if (t < far) { lanes[t] = ${both}; }
    workgroupBarrier();
  }
  let result = lanes[0];
  workgroupBarrier();
  return result;
}`;

/** What each kernel is given, in order. @param {string} words */
const namesOf = (words) => words.split(" ");

/** @param {string} name @param {string} words @param {string} body @param {number} lanes */
function kernel(name, words, body, lanes) {
  const given = namesOf(words).map((each, at) => {
    const word = `given[${at >> 2}].${"xyzw"[at & 3]}`;
    return each.startsWith("f:") ? `let ${each.slice(2)} = bitcast<f32>(${word});` : `let ${each} = ${word};`;
  });
  return `@compute @workgroup_size(${lanes}) fn k_${name}(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
    ${given.join("\n    ")}${body}\n}`;
}

const source = [
  "@group(0) @binding(0) var<storage, read_write> m: array<f32>;",
  "@group(0) @binding(1) var<uniform> given: array<vec4u, 4>;",
  "@group(0) @binding(2) var<storage, read> n: array<i32>;",
  `var<workgroup> lanes: array<f32, ${LANES}>;`,
  `var<workgroup> left: array<f32, ${DEEP * (SIDE + 1)}>;`,
  `var<workgroup> right: array<f32, ${DEEP * (SIDE + 1)}>;`,
  reduced("total", "lanes[t] + lanes[t + far]"), reduced("highest", "max(lanes[t], lanes[t + far])"),
  ...Object.entries(numbers).map(([name, [words, body]]) => kernel(name, `count ${words}`, `
    let i = w.x * ${EACH} + t;
    if (i >= count) { return; }
    ${body}`, EACH)),
  ...Object.entries(groups).map(([name, [words, body]]) => kernel(name, words, body, LANES)),
].join("\n");

/** Of each kernel, which of the words that it is given are floats. @type {Record<string, boolean[]>} */
const floats = Object.fromEntries([
  ...Object.entries(numbers).map(([name, [words]]) => [name, `count ${words}`]), ...Object.entries(groups).map(([name, [words]]) => [name, words]),
].map(([name, words]) => [name, namesOf(words).map((each) => each.startsWith("f:"))]));

module.exports = { EACH, PARTS, SIDE, floats, source };
