// @ts-check
// The small Llama in jax-js: from token ids to the logits at chosen positions, with whatever a method adds.
//
// Every function of jax-js consumes its arguments; `.ref` keeps one for another use. Two remedies below are for speed
// alone: `stored` and `copied` are identities that make jax-js write an array down instead of computing it again inside
// the next product.
"use strict";

/** @typedef {any} Array an array of jax-js */

/**
 * What the page is told about the model; names as in its config.json.
 * @typedef {{
 *   hidden_size: number, intermediate_size: number, num_hidden_layers: number, num_attention_heads: number,
 *   num_key_value_heads: number, head_dim: number, vocab_size: number, rms_norm_eps: number, rope_theta: number,
 * }} Config
 */

/**
 * What a method adds to one matrix: LoRA's A, (d_in, r), and B, (r, d_out); (IA)³'s scale of its output or input.
 * @typedef {{ A?: Array, B?: Array, output?: Array, input?: Array }} Added
 */

const LINEARS = /** @type {const} */ ({
  q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj", o: "self_attn.o_proj",
  gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj",
});

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

/**
 * Cosines, sines and the causal mask for rows of `length` tokens. (length, head_dim) twice and (length, length).
 * @param {any} np
 * @param {Config} config
 * @param {number} length
 */
function positionsOf(np, config, length) {
  const size = config.head_dim, half = size / 2;
  const cos = new Float32Array(length * size), sin = new Float32Array(length * size);
  const mask = new Float32Array(length * length);
  for (let at = 0; at < length; at += 1) {
    for (let pair = 0; pair < half; pair += 1) {
      const angle = Math.fround(at * Math.fround(config.rope_theta ** (-pair / half)));
      for (const place of [at * size + pair, at * size + pair + half]) {
        cos[place] = Math.cos(angle);
        sin[place] = Math.sin(angle);
      }
    }
    for (let before = 0; before < length; before += 1) mask[at * length + before] = before <= at ? 0 : -1e9;
  }
  return {
    cos: np.array(cos).reshape([length, size]), sin: np.array(sin).reshape([length, size]),
    mask: np.array(mask).reshape([length, length]),
  };
}

/**
 * The model's functions over one build of jax-js.
 * @param {any} jax
 * @param {Config} config
 */
function llama(jax, config) {
  const { numpy: np, nn, lax, tree } = jax;
  const { num_key_value_heads: groups, head_dim: size, hidden_size: width } = config;
  const share = config.num_attention_heads / groups; // query heads that share a key

  /** The same values, written to memory: without it autodiff computes a product's inputs again for every sum. */
  function stored(/** @type {Array} */ x) {
    const last = x.shape.length - 1, end = x.shape[last];
    const room = x.shape.map((/** @type {number} */ _, /** @type {number} */ axis) => [0, axis === last ? 4 : 0]);
    const whole = x.shape.map((/** @type {number} */ _, /** @type {number} */ axis) => (axis === last ? [0, end] : []));
    return np.pad(x, room).slice(...whole);
  }

  /** A rearranged view, written to memory in its new order. */
  const copied = (/** @type {Array} */ x, /** @type {(x: Array) => Array} */ rearrange) => rearrange(x.neg()).neg();

  /** x Wᵀ of (rows, d_in) and (d_out, d_in). */
  const timesTransposed = (/** @type {Array} */ x, /** @type {Array} */ w) => stored(np.matmul(x, w.transpose()));

  /**
   * A linear layer with what a method adds: W x, W x + γ B A x, or scaled.
   * @param {Array} x (rows, d_in)
   * @param {Array} w (d_out, d_in)
   * @param {Added | undefined} added
   * @param {Array} gamma a scalar
   */
  function linear(x, w, added, gamma) {
    if (added?.input) x = x.mul(added.input);
    if (added?.A) {
      const update = stored(np.matmul(stored(np.matmul(x.ref, added.A)), added.B)).mul(gamma.ref);
      return timesTransposed(x, w).add(update);
    }
    const h = timesTransposed(x, w);
    return added?.output ? h.mul(added.output) : h;
  }

  function normalised(/** @type {Array} */ x, /** @type {Array} */ gain) {
    const square = np.mean(np.square(x.ref), -1, { keepdims: true });
    return x.mul(np.reciprocal(np.sqrt(square.add(config.rms_norm_eps)))).mul(gain);
  }

  function rotated(/** @type {Array} */ x, /** @type {any} */ positions) {
    const [first, second] = np.split(x.ref, 2, -1);
    const turned = np.concatenate([second.neg(), first], -1);
    return x.mul(positions.cos.ref).add(turned.mul(positions.sin.ref));
  }

  function softmax(/** @type {Array} */ scores) {
    const most = lax.stopGradient(np.max(scores.ref, -1, { keepdims: true }));
    const powers = np.exp(scores.sub(most));
    const total = np.sum(powers.ref, -1, { keepdims: true });
    return powers.mul(np.reciprocal(total));
  }

  /** One decoder layer of (rows · length, d). */
  function layer(
    /** @type {Array} */ x, /** @type {any} */ w, /** @type {Record<string, Added>} */ added, /** @type {Array} */ gamma,
    /** @type {any} */ positions, /** @type {number} */ rows, /** @type {number} */ length,
  ) {
    const heads = (/** @type {Array} */ h, /** @type {number} */ each) =>
      h.reshape([rows, length, groups, each, size]).transpose([0, 2, 3, 1, 4]);
    const h = normalised(x.ref, w.before);
    const q = rotated(heads(linear(h.ref, w.q, added.q, gamma), share), positions);
    const k = rotated(heads(linear(h.ref, w.k, added.k, gamma), 1), positions);
    const v = heads(linear(h, w.v, added.v, gamma), 1);
    const scores = stored(np.matmul(q, k.transpose([0, 1, 2, 4, 3]))).mul(1 / Math.sqrt(size)).add(positions.mask.ref);
    const seen = copied(stored(np.matmul(softmax(scores), v)), (o) =>
      o.transpose([0, 3, 1, 2, 4]).reshape([rows * length, groups * share * size]));
    x = x.add(linear(seen, w.o, added.o, gamma));
    const inner = normalised(x.ref, w.after);
    const gate = linear(inner.ref, w.gate, added.gate, gamma), up = linear(inner, w.up, added.up, gamma);
    return x.add(linear(gate.ref.mul(nn.sigmoid(gate)).mul(up), w.down, added.down, gamma));
  }

  /**
   * Logits at chosen positions.
   * @param {any} weights embedding, layers, norm
   * @param {{ layers?: Record<string, Added>[], prompt?: Array }} added
   * @param {Array} gamma γ of LoRA, a scalar
   * @param {Array} ids (rows, length)
   * @param {Array} chosen (count, rows · length of the virtual and real tokens): a one in each row, at its position
   * @param {any} positions of `positionsOf` for that length
   * @returns {Array} (count, vocabulary)
   */
  function logits(weights, added, gamma, ids, chosen, positions) {
    const [rows, real] = ids.shape, virtual = added.prompt ? added.prompt.shape[0] : 0, length = virtual + real;
    let x = copied(np.take(weights.embedding.ref, ids, 0), (found) => found.reshape([rows * real, width]));
    if (added.prompt) {
      const before = np.broadcastTo(added.prompt.reshape([1, virtual, width]), [rows, virtual, width]);
      x = np.concatenate([before, x.reshape([rows, real, width])], 1).reshape([rows * length, width]);
    }
    weights.layers.forEach((/** @type {any} */ w, /** @type {number} */ at) => {
      x = layer(x, w, added.layers?.[at] ?? {}, gamma, positions, rows, length);
    });
    tree.dispose(positions);
    gamma.dispose();
    const states = stored(np.matmul(chosen, normalised(x, weights.norm)));
    return timesTransposed(states, weights.embedding);
  }

  /**
   * Cross-entropy in nats, weighted: Σ weight · (log Σ exp(logits) − logits[target]).
   * @param {Array} scores (count, vocabulary)
   * @param {Array} targets (count,) ids
   * @param {Array} parts (count,) one over the number of labels, or zero where there is none
   */
  function loss(scores, targets, parts) {
    const most = lax.stopGradient(np.max(scores.ref, -1, { keepdims: true }));
    const shifted = scores.sub(most);
    const total = np.log(np.sum(np.exp(shifted.ref), -1));
    const hit = np.equal(np.arange(config.vocab_size).astype(np.int32), np.expandDims(targets, -1));
    return np.sum(total.sub(np.sum(np.where(hit, shifted, 0), -1)).mul(parts));
  }

  /**
   * The base weights as arrays of jax-js.
   * @param {Record<string, import("./weights.js").Tensor>} tensors by torch's names
   */
  function weightsFrom(tensors) {
    const array = (/** @type {string} */ name) => {
      const found = tensors[`model.${name}.weight`];
      if (!found) throw new Error(`The weights lack ${name}.`);
      return np.array(found.data).reshape(found.shape);
    };
    const layers = Array.from({ length: config.num_hidden_layers }, (_, at) => ({
      before: array(`layers.${at}.input_layernorm`), after: array(`layers.${at}.post_attention_layernorm`),
      ...Object.fromEntries(Object.entries(LINEARS).map(([short, name]) => [short, array(`layers.${at}.${name}`)])),
    }));
    return { embedding: array("embed_tokens"), layers, norm: array("norm") };
  }

  return { logits, loss, weightsFrom };
}

module.exports = { LINEARS, llama, positionsOf, sidesOf };
