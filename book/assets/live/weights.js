// @ts-check
// The page's weights: from the text of a script file to float32.
"use strict";

/**
 * A matrix or vector of float32, row by row.
 * @typedef {{ shape: number[], data: Float32Array }} Tensor
 */

/**
 * Where a tensor lies in the bytes. Of kind `rows`, `codes` are signed bytes and `scales` one float32 a row; of kind
 * `blocks`, two 4-bit codes a byte, the first in the high half, and one float32 a block; of kind `plain`, float32.
 * @typedef {{ name: string, shape: number[], kind: "rows" | "blocks" | "plain", codes: number, scales: number }} Entry
 */

/**
 * @param {string} text base64
 * @param {number} length the bytes there should be. Raises an error if there are more or fewer.
 * @returns {Uint8Array}
 */
function bytesOf(text, length) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  if (bytes.length !== length) throw new Error(`The weights have ${bytes.length} bytes instead of ${length}.`);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

/** @param {Uint8Array} bytes @param {number} from @param {number} count */
const floats = (bytes, from, count) => new Float32Array(bytes.buffer.slice(from, from + 4 * count));

/**
 * Eight bits a row: w = code · scale[row].
 * @param {Int8Array} codes
 * @param {Float32Array} scales
 */
function fromRows(codes, scales) {
  const data = new Float32Array(codes.length), width = codes.length / scales.length;
  for (let at = 0; at < data.length; at += 1) data[at] = codes[at] * scales[Math.floor(at / width)];
  return data;
}

/**
 * NF4: w = levels[code] · absmax[block].
 * @param {Uint8Array} packed two codes a byte
 * @param {Float32Array} absmax
 * @param {Float32Array} levels the 16 levels
 */
function fromBlocks(packed, absmax, levels) {
  const data = new Float32Array(2 * packed.length), block = data.length / absmax.length;
  for (let at = 0; at < packed.length; at += 1) {
    const scale = absmax[Math.floor((2 * at) / block)];
    data[2 * at] = levels[packed[at] >> 4] * scale;
    data[2 * at + 1] = levels[packed[at] & 15] * scale;
  }
  return data;
}

/**
 * All tensors of a file by name.
 * @param {{ text: string, length: number, block: number, entries: Entry[] }} file
 * @param {number[]} levels of NF4
 * @returns {Record<string, Tensor>}
 */
function tensorsOf(file, levels) {
  const bytes = bytesOf(file.text, file.length), table = new Float32Array(levels);
  return Object.fromEntries(file.entries.map(({ name, shape, kind, codes, scales }) => {
    const count = shape.reduce((product, side) => product * side, 1);
    if (kind === "plain") return [name, { shape, data: floats(bytes, codes, count) }];
    if (kind === "rows") {
      return [name, { shape, data: fromRows(new Int8Array(bytes.buffer, codes, count), floats(bytes, scales, shape[0])) }];
    }
    const packed = bytes.subarray(codes, codes + count / 2);
    return [name, { shape, data: fromBlocks(packed, floats(bytes, scales, count / file.block), table) }];
  }));
}

module.exports = { bytesOf, fromBlocks, fromRows, tensorsOf };
