// Steps of a training by the page's engine: node steps.cjs JOB WEIGHTS
// The job names the engine's folder, the task, the settings of a training, and how many steps to make.
"use strict";

const { readFileSync } = require("node:fs");

const read = (path) => JSON.parse(readFileSync(path, "utf-8"));

async function main(job, weights) {
  const { trainer } = require(`${job.engine}/trainer.js`);
  const { tensorsOf } = require(`${job.engine}/weights.js`);
  const training = trainer(job.task).start(tensorsOf(weights, job.levels), job.settings);
  const losses = [], seconds = [];
  let first = 0;
  for (let step = 0; step < job.steps; step += 1) {
    const began = process.cpuUsage();
    losses.push(await training.next());
    const { user, system } = process.cpuUsage(began);
    seconds.push((user + system) / 1e6);
    first ||= performance.now() / 1000;
  }
  console.log(JSON.stringify({ losses, seconds, first }));
}

const [, , job, weights] = process.argv;
main(read(job), read(weights)).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
