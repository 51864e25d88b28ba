// Every view of the studio, served by studio.py: axe (wide, wide and dark, 360 px), of which no finding is let pass, and
// Lighthouse as on a phone: 100 for accessibility, best practices and SEO, at least 95 for performance (median).
// RUNS=3: of Lighthouse. VIEWS=home,runs: only these. PYTHON: the interpreter that has the package.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { axeOver, launched, scoresOf, shown } from "./measure.mjs";

const gates = { accessibility: 100, "best-practices": 100, seo: 100, performance: 95 };
const runs = Number(process.env.RUNS ?? 3), wanted = process.env.VIEWS?.split(",");
const server = spawn(process.env.PYTHON ?? "python", [fileURLToPath(new URL("studio.py", import.meta.url))],
  { stdio: ["pipe", "pipe", "inherit"] });
const [line] = await Promise.race([createInterface(server.stdout)[Symbol.asyncIterator]().next().then(({ value }) => [value]),
  new Promise((_, failed) => server.once("exit", () => failed(new Error("studio.py ended before it served a page."))))]);
const views = Object.entries(JSON.parse(line)).filter(([name]) => !wanted || wanted.includes(name));
const browser = await launched();
let findings = 0;
const report = (words) => { findings += 1; console.log(words); };
try {
  await axeOver(browser, views, null, report);
  for (const [name, address] of runs ? views.filter(([name]) => name !== "nothing") : []) {
    const scores = await scoresOf(browser, address, "mobile", runs, (title) => console.log(`  ${name} ${title}`));
    console.log(`lighthouse ${name}: ${shown(scores)}`);
    for (const [kind, least] of Object.entries(gates)) if (!(scores[kind] >= least)) report(`${name}: ${kind} is ${scores[kind]}, below ${least}`);
  }
} finally {
  await browser.close();
  server.stdin.end();
}
process.exitCode = findings ? 1 : 0;
