// Serves _build/html with gzip, then: axe on every page (desktop and 360 px), Lighthouse on three pages (median of five).
import { readFileSync, statSync, readdirSync, existsSync } from "node:fs";
import { createServer } from "node:http";
import { gzipSync } from "node:zlib";
import { extname, join, resolve, relative } from "node:path";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";
import lighthouse, { desktopConfig } from "lighthouse";

const site = resolve(fileURLToPath(import.meta.url), "../../../_build/html");
if (!existsSync(join(site, "index.html"))) { console.error(`No site at ${site}: run make book.`); process.exit(2); }
const runs = Number(process.env.RUNS ?? 5);
const types = { ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml",
  ".woff2": "font/woff2", ".png": "image/png", ".json": "application/json" };
const server = createServer((request, response) => {
  let path = join(site, decodeURIComponent(new URL(request.url, "http://x").pathname));
  if (existsSync(path) && statSync(path).isDirectory()) path = join(path, "index.html");
  if (!path.startsWith(site) || !existsSync(path)) { response.writeHead(404).end(); return; }
  const type = types[extname(path)] ?? "application/octet-stream";
  const packed = /text|javascript|svg|json/.test(type);
  const body = readFileSync(path);
  response.writeHead(200, { "content-type": type, "cache-control": "max-age=3600", ...(packed && { "content-encoding": "gzip" }) });
  response.end(packed ? gzipSync(body) : body);
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const base = `http://127.0.0.1:${server.address().port}`;
const walk = (folder) => readdirSync(folder, { withFileTypes: true }).flatMap((entry) =>
  entry.isDirectory() ? (entry.name.startsWith("_") ? [] : walk(join(folder, entry.name))) : [join(folder, entry.name)]);
const redirects = (path) => /http-equiv="?refresh/i.test(readFileSync(path, "utf8").slice(0, 2000));
const pages = walk(site).filter((path) => path.endsWith(".html") && !redirects(path)).map((path) => relative(site, path));
const browser = await puppeteer.launch({ executablePath: process.env.CHROME, headless: true, args: ["--no-sandbox",
  "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
const axe = readFileSync(fileURLToPath(import.meta.resolve("axe-core/axe.min.js")), "utf8");
let serious = 0;
for (const [width, height] of [[1280, 900], [360, 800]]) {
  const page = await browser.newPage();
  await page.setViewport({ width, height });
  for (const path of pages) {
    await page.goto(`${base}/${path}`, { waitUntil: "load" });
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
    for (const one of violations.filter(({ impact }) => impact === "serious" || impact === "critical")) {
      serious += 1;
      console.log(`axe ${width}px ${path}: ${one.id} (${one.impact}) ${one.nodes.slice(0, 2).map((node) => node.target).join(" | ")}`);
    }
  }
  await page.close();
}
console.log(`axe: ${pages.length} pages at two widths, ${serious} serious or critical findings`);
const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
const chosen = (process.env.PAGES ?? "book/index.html,book/lora.html,book/head-to-head.html").split(",");
for (const path of chosen) for (const form of ["mobile", "desktop"]) {
  const scores = {}, weights = [];
  for (let run = 0; run < runs; run += 1) {
    const { lhr } = await lighthouse(`${base}/${path}`, { port: new URL(browser.wsEndpoint()).port, logLevel: "error" },
      form === "desktop" ? desktopConfig : undefined);
    for (const [name, { score }] of Object.entries(lhr.categories)) (scores[name] ??= []).push(Math.round(score * 100));
    (scores.cls ??= []).push(lhr.audits["cumulative-layout-shift"].numericValue);
    weights.push(lhr.audits["total-byte-weight"].numericValue);
  }
  const shown = Object.entries(scores).map(([name, values]) => `${name} ${+median(values).toFixed(3)}`).join(", ");
  console.log(`lighthouse ${form} ${path}: ${shown}, ${Math.round(median(weights) / 1000)} kB`);
}
await browser.close();
server.close();
process.exit(serious ? 1 : 0);
