// The first losses of a training by the page's engine: node losses.cjs DATA WEIGHTS ARM RATE SEED STEPS
"use strict";

const { readFileSync } = require("node:fs");
const engine = `${__dirname}/../../book/assets/live`;
const jax = require(`${engine}/jax/index.cjs`);
const { trainer } = require(`${engine}/trainer.js`);
const { tensorsOf } = require(`${engine}/weights.js`);

const read = (path) => JSON.parse(readFileSync(path, "utf-8"));

async function main(data, weights, name, rate, seed, count) {
  await jax.init("wasm");
  jax.defaultDevice("wasm");
  const plan = data.plans[seed], choice = { ...data.arms[name].choice, start: data.starts[seed] };
  const settings = { choice, rate, steps: plan.length, seed, plan };
  const training = trainer(jax, data.task).start(tensorsOf(weights, data.levels), settings);
  const losses = [], seconds = [];
  for (let step = 0; step < count; step += 1) {
    const began = process.cpuUsage();
    losses.push(await training.next());
    seconds.push(process.cpuUsage(began).user / 1e6);
  }
  console.log(JSON.stringify({ losses, seconds }));
}

const [, , data, weights, name, rate, seed, count] = process.argv;
main(read(data), read(weights), name, Number(rate), Number(seed), Number(count));
