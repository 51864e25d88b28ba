// Serves _build/html with gzip, then measures every page: kilobytes over the wire, other hosts, layout shift, sideways
// scrolling, these at 360, 1350 and, over a slow network and for the book's own pages, at 412 px;
// axe (wide, wide and dark, 360 px); and runs Lighthouse on three pages (median of five).
// EVERY=20: of the run pages each twentieth (EVERY=1: all). RUNS=5: of Lighthouse. PAGES=a.html,b.html: for Lighthouse.
import { readFileSync, statSync, readdirSync, existsSync } from "node:fs";
import { createServer } from "node:http";
import { gzipSync } from "node:zlib";
import { extname, join, resolve, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { axeOver, launched, scoresOf, shown } from "./measure.mjs";

const site = resolve(process.env.SITE ?? fileURLToPath(new URL("../../../_build/html", import.meta.url)));
if (!existsSync(join(site, "index.html"))) { console.error(`No site at ${site}: run make book.`); process.exit(2); }
const runs = Number(process.env.RUNS ?? 5), every = Number(process.env.EVERY ?? 20);
const limits = { kB: 500, shift: 0.05 };
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
const isRun = (path) => /runs\/[0-9a-f]{12}\.html$/.test(path);
const found = walk(site).filter((path) => path.endsWith(".html") && !redirects(path)).map((path) => relative(site, path)).sort();
const pages = [...found.filter((path) => !isRun(path)), ...found.filter(isRun).filter((_, number) => number % every === 0)];
const browser = await launched();
let findings = 0;
const report = (line) => { findings += 1; console.log(line); };

const weights = [], shifts = [];
const slow = { offline: false, latency: 150, downloadThroughput: 1.6e6 / 8, uploadThroughput: 7.5e5 / 8 }; // Lighthouse's phone
for (const path of pages) for (const [width, height] of [[360, 740], [1350, 940], ...(/^(book|index)/.test(path) ? [[412, 823]] : [])]) {
  const page = await browser.newPage();
  await page.setViewport({ width, height });
  const session = await page.createCDPSession();
  let bytes = 0;
  await session.send("Network.enable");
  session.on("Network.loadingFinished", ({ encodedDataLength }) => { bytes += encodedDataLength; });
  session.on("Network.requestWillBeSent", ({ request: { url } }) => {
    if (!url.startsWith(base) && !url.startsWith("data:") && !url.startsWith(`blob:${base}`)) report(`other host: ${path} asks for ${url}`);
  });
  await page.evaluateOnNewDocument(() => {
    globalThis.shift = 0;
    new PerformanceObserver((list) => { for (const one of list.getEntries()) globalThis.shift += one.value; })
      .observe({ type: "layout-shift", buffered: true });
  });
  await session.send("Network.setCacheDisabled", { cacheDisabled: true });
  if (width === 412) await session.send("Network.emulateNetworkConditions", slow);
  await page.goto(`${base}/${path}`, { waitUntil: "networkidle0", timeout: 180_000 });
  const [scroll, shift] = await page.evaluate(() => [document.documentElement.scrollWidth, globalThis.shift]);
  weights.push([bytes / 1000, path]);
  shifts.push([shift, path]);
  if (scroll > width) report(`sideways: ${path} is ${scroll} px wide at ${width} px`);
  if (bytes / 1000 > limits.kB) report(`heavy: ${path} takes ${Math.round(bytes / 1000)} kB at ${width} px`);
  if (shift >= limits.shift) report(`shift: ${path} shifts by ${shift.toFixed(3)} at ${width} px`);
  await page.close();
}
for (const [name, values, digits] of [["kB over the wire", weights, 0], ["layout shift", shifts, 3]]) {
  const most = values.sort((a, b) => b[0] - a[0]).slice(0, 5).map(([value, path]) => `${value.toFixed(digits)} ${path}`);
  console.log(`${name}, largest of ${pages.length} pages: ${most.join(", ")}`);
}

await axeOver(browser, pages.map((path) => [path, `${base}/${path}`]), ["serious", "critical"], report);

const chosen = (process.env.PAGES ?? "book/index.html,book/lora.html,book/head-to-head.html").split(",");
for (const path of runs ? chosen : []) for (const form of ["mobile", "desktop"]) {
  const scores = await scoresOf(browser, `${base}/${path}`, form, runs, (title) => console.log(`  ${path} ${form} ${title}`));
  console.log(`lighthouse ${form} ${path}: ${shown(scores)}`);
}
await browser.close();
server.close();
process.exit(findings ? 1 : 0);
