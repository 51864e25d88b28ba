// What the audits of the book's site and of the studio share: a browser, axe over pages, and Lighthouse on one.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";
import lighthouse, { desktopConfig } from "lighthouse";

export const launched = () => puppeteer.launch({ executablePath: process.env.CHROME, headless: true, protocolTimeout: 600_000,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync"] });

// Wide, wide and dark, and on a phone; pages: [name, address]. impacts: of the findings that count, all of them without.
export async function axeOver(browser, pages, impacts, report) {
  const axe = readFileSync(fileURLToPath(import.meta.resolve("axe-core/axe.min.js")), "utf8");
  for (const [width, height, scheme] of [[1280, 900, "light"], [1280, 900, "dark"], [360, 740, "light"]]) {
    let counted = 0;
    for (const [name, address] of pages) {
      const page = await browser.newPage();
      await page.setViewport({ width, height });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.goto(address, { waitUntil: "load", timeout: 180_000 });
      const session = await page.createCDPSession();  // past the page's own policy on scripts
      const said = await session.send("Runtime.evaluate", { awaitPromise: true, returnByValue: true,
        expression: `${axe}; axe.run(document, { resultTypes: ["violations"] }).then((found) => found.violations)` });
      for (const one of said.result.value.filter(({ impact }) => !impacts || impacts.includes(impact))) {
        counted += 1;
        const places = one.nodes.slice(0, 2).map((node) => node.target).join(" | ");
        report(`axe ${width} px ${scheme} ${name}: ${one.id} (${one.impact}, ${one.nodes.length}) ${places}`);
      }
      await page.close();
    }
    console.log(`axe at ${width} px, ${scheme}: ${pages.length} pages, ${counted} ${impacts?.join(" or ") ?? ""} findings`);
  }
}

// Scores and sizes by name, medians over the runs. say: told each audit of the categories without luck that fails.
// A run in which Lighthouse itself failed, as on a busy machine, is repeated, three times at most.
export async function scoresOf(browser, address, form, runs, say) {
  const scores = {};
  for (let run = 0, failures = 0; run < runs; run += 1) {
    const { lhr } = await lighthouse(address, { port: new URL(browser.wsEndpoint()).port, logLevel: "error" },
      form === "desktop" ? desktopConfig : undefined);
    if ((lhr.runtimeError || Object.values(lhr.categories).some(({ score }) => score === null)) && (failures += 1) <= 3) {
      run -= 1;
      continue;
    }
    for (const [name, { score }] of Object.entries(lhr.categories)) (scores[name] ??= []).push(Math.round(score * 100));
    for (const [name, audit] of [["shift", "cumulative-layout-shift"], ["kB", "total-byte-weight"],
      ["main thread ms", "mainthread-work-breakdown"], ["blocking ms", "total-blocking-time"]]) {
      (scores[name] ??= []).push((lhr.audits[audit]?.numericValue ?? NaN) / (name === "kB" ? 1000 : 1));
    }
    for (const name of ["accessibility", "best-practices", "seo"]) {
      for (const { id, weight } of run ? [] : lhr.categories[name].auditRefs) {
        if (weight && lhr.audits[id].score !== null && lhr.audits[id].score < 1) say(`${name}: ${lhr.audits[id].title}`);
      }
    }
  }
  return Object.fromEntries(Object.entries(scores).map(([name, values]) => [name, median(values)]));
}

export const shown = (scores) => Object.entries(scores).map(([name, value]) => `${name} ${+value.toFixed(name === "shift" ? 3 : 0)}`).join(", ");

const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
