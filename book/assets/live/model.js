// @ts-check
// The small Llama with whatever a method adds: from token ids to the loss at the labels, and back to the gradients.
//
// Rows of a batch follow one another without padding. In the last layer only the tokens whose logits are wanted ask;
// all others are no more than keys and values there.
"use strict";

const { first } = require("./arrays.js");
const { attention, gated, linear, norm } = require("./parts.js");

/** @typedef {import("./arrays.js").Matrix} Matrix */
/** @typedef {import("./arrays.js").Parameter} Parameter */
/** @typedef {import("./parts.js").Added} Added */
/** @typedef {import("./parts.js").Segment} Segment */
/** @typedef {import("./parts.js").Space} Space */
/** @typedef {import("./weights.js").Tensor} Tensor */

/**
 * What the page is told about the model; names as in its config.json.
 * @typedef {{
 *   hidden_size: number, intermediate_size: number, num_hidden_layers: number, num_attention_heads: number,
 *   num_key_value_heads: number, head_dim: number, vocab_size: number, rms_norm_eps: number, rope_theta: number,
 * }} Config
 */

/**
 * Rows of ids, and from which position on the logits of each are wanted.
 * @typedef {{ ids: number[], wanted: number }} Asked
 */

/** The most that a batch may hold: rows, tokens of a row with the virtual ones, tokens whose logits are wanted. @typedef {{ rows: number, length: number, wanted: number }} Most */

/**
 * Where a batch's tokens lie. ids, prompted: of each token its id or its place in the prompt, −1 for the other. positions:
 * of all tokens, within their rows. picked: those whose logits are wanted. asking: their positions.
 * @typedef {{ ids: Int32Array, prompted: Int32Array, positions: Int32Array, picked: Int32Array, asking: Int32Array, all: Segment[], last: Segment[] }} Batch
 */

const LINEARS = /** @type {const} */ ({
  q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj", o: "self_attn.o_proj",
  gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj",
});
const NONE = -1; // in place of an id, or of a place in the prompt

/**
 * (d_in, d_out) of a layer's matrices, in the model's order.
 * @param {Config} config
 * @returns {Record<string, [number, number]>}
 */
function sidesOf(config) {
  const width = config.hidden_size, inner = config.intermediate_size;
  const queries = config.num_attention_heads * config.head_dim, keys = config.num_key_value_heads * config.head_dim;
  return {
    q: [width, queries], k: [width, keys], v: [width, keys], o: [queries, width],
    gate: [width, inner], up: [width, inner], down: [inner, width],
  };
}

/** Cosines and sines, (length, head_dim / 2). @param {Space} space @param {Config} config @param {number} length */
function angles(space, { head_dim: size, rope_theta: theta }, length) {
  const half = size / 2, cos = new Float32Array(length * half), sin = new Float32Array(length * half);
  for (let at = 0; at < length * half; at += 1) {
    const angle = Math.fround(Math.floor(at / half) * Math.fround(theta ** (-(at % half) / half)));
    cos[at] = Math.cos(angle);
    sin[at] = Math.sin(angle);
  }
  return { cos: space.array(length, half, cos), sin: space.array(length, half, sin) };
}

/**
 * The tokens of rows, one after another, each row behind `virtual` tokens of a prompt.
 * @param {Asked[]} rows
 * @param {number} virtual
 * @returns {Batch}
 */
function batched(rows, virtual) {
  const before = Array(virtual).fill(NONE), places = before.map((_, at) => at);
  /** @type {number[]} */
  const ids = [], prompted = [], positions = [], picked = [], asking = [];
  /** @type {Segment[]} */
  const all = [], last = [];
  for (const row of rows) {
    const keys = ids.length, length = virtual + row.ids.length, position = virtual + row.wanted;
    all.push({ queries: keys, count: length, keys, length });
    last.push({ queries: picked.length, count: length - position, keys, length });
    ids.push(...before, ...row.ids);
    prompted.push(...places, ...row.ids.map(() => NONE));
    for (let at = 0; at < length; at += 1) {
      positions.push(at);
      if (at < position) continue;
      picked.push(keys + at);
      asking.push(at);
    }
  }
  const whole = (/** @type {number[]} */ list) => Int32Array.from(list);
  return { ids: whole(ids), prompted: whole(prompted), positions: whole(positions), picked: whole(picked), asking: whole(asking), all, last };
}

/**
 * One decoder layer. last: whether only the tokens whose logits are wanted ask.
 * @param {Space} space @param {Config} config @param {Record<string, Parameter>} w @param {Record<string, Added>} added
 * @param {number} gamma @param {ReturnType<typeof angles>} table @param {Most} most @param {any} room matrices for gradients
 * @param {boolean} last
 */
function layer(space, config, w, added, gamma, table, most, room, last) {
  const { hidden_size: width, intermediate_size: inner, rms_norm_eps: epsilon } = config;
  const tokens = most.rows * most.length, asking = last ? most.wanted : tokens;
  const each = (/** @type {string} */ name, /** @type {number} */ rows) => linear(space, w[name], added[name] ?? {}, gamma, rows);
  const before = norm(space, w.before, epsilon, tokens), after = norm(space, w.after, epsilon, asking);
  const query = each("q", asking), key = each("k", tokens), value = each("v", tokens), output = each("o", asking);
  const gate = each("gate", asking), up = each("up", asking), down = each("down", asking);
  const seeing = attention(space, config, asking, most.length), joined = gated(space, inner, asking);
  const own = last ? { h: space.array(asking, width), x: space.array(asking, width) } : undefined;
  /** @type {Batch} */ let batch;

  const positions = () => (own ? batch.asking : batch.positions);

  /** @param {Matrix} x @param {Batch} given */
  function forward(x, given) {
    batch = given;
    const h = before.forward(x), asked = own ? first(own.h, batch.picked.length) : h, base = own ? first(own.x, batch.picked.length) : x;
    if (own) {
      space.gathered(asked, h, batch.picked);
      space.gathered(base, x, batch.picked);
    }
    const q = query.forward(asked), k = key.forward(h), v = value.forward(h);
    space.rotated(q, positions(), table, 1);
    space.rotated(k, batch.positions, table, 1);
    const middle = output.forward(seeing.forward(q, k, v, own ? batch.last : batch.all, positions()), base);
    const m = after.forward(middle);
    return down.forward(joined.forward(gate.forward(m), up.forward(m)), middle);
  }

  /**
   * From the gradient by what `forward` returned to that by its x, in dx, unless nothing below is trained.
   * @param {Matrix} dy used up @param {Matrix} dx @param {boolean} below
   */
  function backward(dy, dx, below) {
    const count = batch.ids.length, asked = dy.rows, of = (/** @type {Matrix} */ matrix, rows = asked) => first(matrix, rows);
    const da = of(room.inner), dg = of(room.gate), du = of(room.up), dm = of(room.hidden);
    down.backward(da, dy, false);
    joined.backward(dg, du, da);
    gate.backward(dm, dg, false);
    up.backward(dm, du, true);
    after.backward(dy, dm);
    const seen = of(room.seen), dq = of(room.query), dk = of(room.key, count), dv = of(room.value, count);
    output.backward(seen, dy, false);
    seeing.backward(dq, dk, dv, seen);
    space.rotated(dq, positions(), table, -1);
    space.rotated(dk, batch.positions, table, -1);
    const dh = of(room.hidden, count), dAsked = own ? of(own.h) : dh;
    query.backward(below ? dAsked : undefined, dq, false);
    if (own && below) {
      space.filled(dh, 0);
      space.scattered(dh, dAsked, batch.picked);
    }
    key.backward(below ? dh : undefined, dk, true);
    value.backward(below ? dh : undefined, dv, true);
    if (!below) return;
    if (own) {
      space.filled(dx, 0);
      space.scattered(dx, dy, batch.picked);
    } else space.copied(dx, dy);
    before.backward(dx, dh);
  }

  return { forward, backward };
}

/**
 * The model in a space, before that is settled.
 * @param {Space} space
 * @param {Config} config
 * @param {Record<string, Tensor>} tensors the base by torch's names
 * @param {{ layers?: Record<string, Record<string, Tensor>>[], prompt?: Tensor }} starts what a method adds, where it begins
 * @param {{ gamma: number, full: boolean, most: Most }} how gamma: LoRA's.  full: the base itself is trained
 */
function llama(space, config, tensors, starts, { gamma, full, most }) {
  const { hidden_size: width, intermediate_size: inner, vocab_size: vocabulary } = config;
  /** @type {Required<Parameter>[]} */
  const trained = [];

  /** @param {Tensor} tensor @param {boolean} trains @returns {Parameter} */
  function parameter({ shape, data }, trains) {
    const [rows, columns] = shape.length === 1 ? [1, shape[0]] : shape, value = space.array(rows, columns, data);
    if (!trains) return { value };
    const both = { value, gradient: space.array(rows, columns) };
    trained.push(both);
    return both;
  }

  function weight(/** @type {string} */ name) {
    const found = tensors[`model.${name}.weight`];
    if (!found) throw new Error(`The weights lack ${name}.`);
    return parameter(found, full);
  }

  const tokens = most.rows * most.length, table = angles(space, config, most.length);
  const room = {
    inner: space.array(tokens, inner), gate: space.array(tokens, inner), up: space.array(tokens, inner), hidden: space.array(tokens, width),
    seen: space.array(tokens, sidesOf(config).o[0]), query: space.array(tokens, sidesOf(config).q[1]),
    key: space.array(tokens, sidesOf(config).k[1]), value: space.array(tokens, sidesOf(config).v[1]),
  };
  const embedding = weight("embed_tokens"), prompt = starts.prompt && parameter(starts.prompt, true);
  const addedOf = (/** @type {number} */ at) => Object.fromEntries(Object.entries(starts.layers?.[at] ?? {}).map(([name, added]) =>
    [name, Object.fromEntries(Object.entries(added).map(([part, tensor]) => [part, parameter(tensor, true)]))]));
  const parts = Array.from({ length: config.num_hidden_layers }, (_, at) => {
    const w = { before: weight(`layers.${at}.input_layernorm`), after: weight(`layers.${at}.post_attention_layernorm`),
      ...Object.fromEntries(Object.entries(LINEARS).map(([short, name]) => [short, weight(`layers.${at}.${name}`)])) };
    const added = addedOf(at);
    return { added, ...layer(space, config, w, added, gamma, table, most, room, at === config.num_hidden_layers - 1) };
  });
  const end = norm(space, weight("norm"), config.rms_norm_eps, most.wanted);
  const start = space.array(tokens, width), scores = space.array(most.wanted, vocabulary), dStates = space.array(most.wanted, width);
  const losses = space.array(most.wanted, 1);
  const slopes = [space.array(tokens, width), space.array(tokens, width)];
  /** @type {Batch} */ let batch;
  /** @type {Matrix} */ let states;

  /** Logits where they are wanted, (count, vocabulary), row after row. @param {Asked[]} rows */
  function logits(rows) {
    batch = batched(rows, prompt ? prompt.value.rows : 0);
    let x = first(start, batch.ids.length);
    space.gathered(x, embedding.value, batch.ids);
    if (prompt) space.gathered(x, prompt.value, batch.prompted);
    for (const part of parts) x = part.forward(x, batch);
    states = end.forward(x);
    const found = first(scores, states.rows);
    space.product(found, states, embedding.value, "b");
    return found;
  }

  /**
   * Cross-entropy in nats of each wanted token, and the gradients of its mean by all that is trained.
   * @param {Asked[]} rows
   * @param {number[]} targets an id for each wanted token
   */
  function loss(rows, targets) {
    const found = logits(rows), each = first(losses, found.rows);
    space.crossEntropy(each, found, Int32Array.from(targets));
    backward(found);
    return each;
  }

  /** @param {Matrix} dScores */
  function backward(dScores) {
    const d = first(dStates, dScores.rows);
    if (embedding.gradient) space.product(embedding.gradient, dScores, states, "a");
    space.product(d, dScores, embedding.value);
    let [dy, dx] = slopes;
    space.filled(first(dy, d.rows), 0);
    end.backward(first(dy, d.rows), d);
    let rows = d.rows;
    for (let at = parts.length - 1; at >= 0; at -= 1) {
      parts[at].backward(first(dy, rows), first(dx, batch.ids.length), at > 0 || full || Boolean(prompt));
      rows = batch.ids.length;
      [dy, dx] = [dx, dy];
    }
    const dEmbedded = first(dy, batch.ids.length);
    if (embedding.gradient) space.scattered(embedding.gradient, dEmbedded, batch.ids);
    if (!prompt?.gradient) return;
    space.filled(prompt.gradient, 0);
    space.scattered(prompt.gradient, dEmbedded, batch.prompted);
  }

  return { logits, loss, trained, added: parts.map(({ added }) => added) };
}

module.exports = { LINEARS, llama, sidesOf };
