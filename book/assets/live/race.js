// @ts-check
// One training, two engines. WebAssembly's makes the first steps; a graphics processor's makes them too and goes on alone
// if it comes to the same and is faster. Where it fails later, WebAssembly's goes on from what was last read back.
"use strict";

/** @typedef {ReturnType<ReturnType<typeof import("./trainer.js").trainer>["start"]>} Training */
/** @typedef {Awaited<ReturnType<Training["state"]>>} State */

const TRIAL = 2; // steps that both make
const LOSS = 1e-4; // how far a loss may be from WebAssembly's, of that
const WAY = 0.05; // how far weights and moments may be after the trial, matrix by matrix, of the way that they went
const PATIENCE = 3000; // milliseconds for a step of the trial
const SAVED = 20; // steps between two times that all that is trained is read back

/** Whether both have gone the same way. @param {State} own @param {State} other @param {State} start */
function alike(own, other, start) {
  return own.values.every((mine, which) => {
    let apart = 0, way = 0;
    for (let at = 0; at < mine.length; at += 1) {
      apart += (other.values[which][at] - mine[at]) ** 2;
      way += (mine[at] - start.values[which][at]) ** 2;
    }
    return apart <= WAY ** 2 * way;
  });
}

const late = () => new Promise((_, reject) => { setTimeout(reject, PATIENCE, new Error("A step took too long.")); });

/** A step, and its seconds. @param {Training} training @returns {Promise<[number, number]>} */
async function timed(training) {
  const began = performance.now(), loss = await training.next();
  return [loss, (performance.now() - began) / 1000];
}

/**
 * A training like `own`, with what it was trained by.
 * @param {Training} own WebAssembly's, at its start
 * @param {() => Promise<Training | undefined>} rival the same on a graphics processor, once there is one
 * @param {() => void} refused is called if that went wrong, so that it is not tried again
 */
function raced(own, rival, refused) {
  let training = own, step = 0, tried = 0, reached = 0; // steps made; of them on trial, and by one's own engine
  /** @type {Training | undefined} */ let other;
  /** @type {State | undefined} */ let start;
  /** @type {State | undefined} */ let saved;
  /** @type {number | undefined} */ let lost;
  rival().then((there) => { other = there; }).catch(() => undefined);

  /** A step of one's own engine, and of the other while it is on trial. */
  async function both() {
    const held = other && (await begun(other)), [loss, seconds] = await timed(own);
    reached = step + 1;
    if (held) await against(held, loss, seconds).catch(() => {
      other = undefined;
      refused();
    });
    return loss;
  }

  /** The other engine, brought to where one's own is. @param {Training} there */
  async function begun(there) {
    if (start) return there;
    start = await own.state();
    there.resume(start);
    return there;
  }

  /** Hold a step of the other engine against one's own. @param {Training} there @param {number} loss @param {number} seconds */
  async function against(there, loss, seconds) {
    const [theirs, took] = await Promise.race([timed(there), /** @type {Promise<never>} */ (late())]);
    if (!(Math.abs(theirs - loss) <= LOSS * Math.abs(loss))) throw new Error("The losses differ.");
    tried += 1;
    if (tried < TRIAL || !start) return;
    if (!alike(await own.state(), await there.state(), start)) throw new Error("The weights differ.");
    if (took < seconds) training = there;
    [other, start] = [undefined, undefined];
  }

  /** Bring one's own engine to where the other failed. */
  async function back() {
    refused();
    [training, lost] = [own, step];
    if (saved) own.resume(saved);
    for (let at = saved?.at ?? reached; at < step; at += 1) await own.next();
  }

  /** What the chosen engine says, or, if it fails, one's own. @template {"next" | "answers" | "spectrum" | "state"} Name @param {Name} name @returns {Training[Name]} */
  const either = (name) => /** @type {any} */ (async (/** @type {any[]} */ ...given) => {
    const ask = (/** @type {any} */ which) => which[name](...given);
    if (training === own) return ask(own);
    try {
      return await ask(training);
    } catch {
      await back();
      return ask(own);
    }
  });

  async function next() {
    const loss = await (training === own ? both() : either("next")());
    step += 1;
    if (training !== own && step % SAVED === 0) saved = await either("state")();
    return loss;
  }

  /** What has trained, for a reader. */
  function by() {
    if (lost !== undefined) return `the graphics processor (WebGPU) up to step ${lost}, where it failed, and from then on the processor (WebAssembly)`;
    return training === own ? "the processor (WebAssembly)" : "the graphics processor (WebGPU)";
  }

  return { next, answers: either("answers"), spectrum: either("spectrum"), by };
}

module.exports = { raced };
