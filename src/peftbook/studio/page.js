/* What the page does better with a script; without it every form works too. */
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("script");
  const store = (value) => { try { return value === undefined ? localStorage.getItem("studio-theme") : localStorage.setItem("studio-theme", value); } catch { return null; /* private mode */ } };
  if (store()) root.dataset.theme = store();
  const find = (selector) => document.querySelector(selector);

  /* ---- parts that change: an element becomes what the server says, and what is focused or unfolded in it stays ---- */
  const patch = (old, fresh) => {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== 1 || old.tagName !== fresh.tagName || old.id !== fresh.id) { old.replaceWith(fresh); return; }
    const kept = (name) => name === "open" || name === "data-began";
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !kept(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (!kept(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((node, at) => { before[at] ? patch(before[at], node) : old.append(node); });
    before.slice(after.length).forEach((node) => node.remove());
  };
  const take = (text, ...ids) => {
    const said = new DOMParser().parseFromString(text, "text/html");
    for (const id of ids) { const old = document.getElementById(id), fresh = said.getElementById(id); if (old && fresh) patch(old, fresh); }
    ready();
  };
  const refused = (words) => {
    const said = find("#refused");
    said.replaceChildren();
    if (!words) return;
    said.append(find("#trouble").content.cloneNode(true));
    said.querySelector("span:last-child").textContent = words;
    said.scrollIntoView({ block: "nearest" });
  };

  /* ---- looking again: at the live part of this address, or at who works ---- */
  let seen = "", timer = 0, round = 0;
  const later = (seconds) => { clearTimeout(timer); timer = setTimeout(look, 1000 * seconds); };
  const pause = () => Number(find("#live")?.dataset.seconds || 0);
  const look = async () => {
    const mine = ++round, live = pause(), address = new URL(live ? location.href : document.body.dataset.status, location.href);
    if (document.hidden && !find("#live .loading")) return later(1);
    address.searchParams.set("part", "live");
    try {
      const answer = await fetch(address, { headers: seen ? { "if-none-match": seen } : {}, cache: "no-store" });
      if (answer.status === 401 || answer.status === 404) return location.reload();  /* logged out, deleted */
      if (mine === round && answer.ok) { seen = answer.headers.get("etag") || ""; take(await answer.text(), "status", "live"); }
    } catch { /* the studio is being started again */ }
    later(pause() || 4);
  };
  const forget = () => { seen = ""; round++; };

  /* ---- forms ---- */
  const stay = async (form, button) => {  /* what a button in a list does is shown in its place */
    forget();
    const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form, button)) });
    if (!answer.headers.get("content-type")?.includes("html")) return location.reload();  /* logged out */
    take(await answer.text(), "status", "live", "refused");
    later(pause() || 4);
  };
  const lookAt = async (form) => {  /* the same address with what is typed now */
    const address = new URL(form.action);
    address.search = new URLSearchParams(new FormData(form));
    history.replaceState(null, "", address);
    forget();
    const mine = round;
    address.searchParams.set("part", "live");
    const text = await (await fetch(address, { cache: "no-store" })).text();
    if (mine === round) take(text, "live");
  };
  const outdated = (form) => {  /* what was checked is no longer what is asked for */
    const address = new URL(location.href), request = address.searchParams.get("check");
    if (!request) { refused(""); return; }
    const body = new URLSearchParams(new FormData(form));
    body.set("cancel", request);
    fetch(form.action, { method: "POST", body, redirect: "manual" });
    form.action = address.pathname;
    address.search = "";
    history.replaceState(null, "", address);
    forget();
    refused("");
    const live = find("#live");
    live.dataset.seconds = "0";
    live.replaceChildren();
  };

  /* ---- uploads: in parts, so that one goes on where it broke off ---- */
  const json = async (address, method, body) => {
    const answer = await fetch(address, { method, body: body && JSON.stringify(body), headers: body ? { "content-type": "application/json" } : {} });
    const said = answer.status === 204 ? {} : await answer.json();
    if (!answer.ok) throw new Error(said.detail);
    return said;
  };
  const put = (address, body, show) => new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.upload.onprogress = (event) => show(event.loaded);
    request.onload = () => request.status === 200 ? done(true) : failed(new Error(JSON.parse(request.responseText || "{}").detail || "The upload was refused."));
    request.onerror = () => done(false);
    request.open("PUT", address);
    request.setRequestHeader("content-type", "application/octet-stream");
    request.send(body);
  });
  const send = async (form, body, filename) => {
    const api = form.dataset.api, bar = form.querySelector("progress"), name = filename || "The text";
    let draft = null;
    refused("");
    try {
      if (!body.size) throw new Error(`${name} is empty: give a header and rows.`);
      if (body.size > Number(form.dataset.most)) throw new Error(`${name} has ${body.size.toLocaleString("en")} bytes, more than the cap of ${form.dataset.said}: cut it.`);
      bar.hidden = false;
      draft = await json(api, "POST", { filename, bytes: body.size });
      for (let tries = 0, offset = 0; !await put(`${api}/${draft.id}/content?offset=${offset}`, body.slice(offset), (sent) => { bar.value = 100 * (offset + sent) / body.size; });) {
        if (++tries > 5) throw new Error("The upload broke off: check that the studio still runs, then try again.");
        await new Promise((go) => setTimeout(go, 1000 * tries));
        offset = (await json(`${api}/${draft.id}`, "GET").catch(() => ({ offset }))).offset;
      }
      await json(`${api}/${draft.id}/table`, "GET");
      location.assign(form.dataset.new + draft.id);
    } catch (error) {
      bar.hidden = true;
      if (draft) json(`${api}/${draft.id}`, "DELETE").catch(() => {});
      refused(error.message);
    }
  };

  /* ---- tables ---- */
  const value = (row, place) => { const cell = row.cells[place], text = cell?.dataset.value ?? cell?.textContent.trim() ?? ""; return text !== "" && !isNaN(text) ? Number(text) : text.toLowerCase(); };
  const sort = (cell) => {
    const body = cell.closest("table").tBodies[0], place = cell.cellIndex, up = cell.getAttribute("aria-sort") === "descending";
    for (const other of cell.parentNode.cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => { const x = value(a, place), y = value(b, place); return x < y ? -1 : x > y ? 1 : 0; });
    body.append(...(up ? rows : rows.reverse()));
  };
  const filter = (field) => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean), address = new URL(location.href);
    for (const row of document.querySelectorAll(`table.${field.dataset.filter} tbody tr`)) row.hidden = !words.every((word) => row.cells[0].dataset.value.toLowerCase().includes(word));
    address.searchParams.set(field.name, field.value);
    history.replaceState(null, "", address);
  };
  const ready = () => {
    for (const cell of document.querySelectorAll("th[data-sort]")) {
      if (cell.querySelector("button")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
    }
  };

  /* ---- how long something has been under way, since it was first seen ---- */
  setInterval(() => {
    for (const element of document.querySelectorAll("[data-since]")) {
      const began = (element.dataset.began ||= Date.now());
      element.textContent = `${Math.round((Date.now() - began) / 1000)} s`;
    }
  }, 500);

  document.addEventListener("DOMContentLoaded", () => { ready(); later(pause() || 4); });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  document.addEventListener("click", (event) => {
    const hit = event.target.closest("button");
    if (!hit) return;
    if (hit.closest("th[data-sort]")) sort(hit.closest("th"));
    else if (hit.dataset.theme !== undefined) {
      const dark = getComputedStyle(root).colorScheme === "dark" || (getComputedStyle(root).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
      store(root.dataset.theme = dark ? "light" : "dark");
    } else if (hit.dataset.copy !== undefined) navigator.clipboard?.writeText(hit.parentNode.querySelector("pre").textContent).then(() => { hit.textContent = "Copied"; });
  });
  document.addEventListener("submit", (event) => {
    const form = event.target, button = event.submitter;
    if (form.id === "upload") { event.preventDefault(); send(form, new Blob([form.pasted.value]), ""); }
    else if (form.dataset.stay !== undefined) { event.preventDefault(); stay(form, button).catch(() => form.submit()); }
  });
  document.addEventListener("change", (event) => {
    const field = event.target, form = field.form;
    if (field.type === "file") { if (field.files.length) send(form, field.files[0], field.files[0].name); field.value = ""; }
    else if (form?.dataset.look !== undefined) lookAt(form);
    else if (form?.dataset.auto !== undefined && field.tagName === "SELECT") form.requestSubmit();
  });
  document.addEventListener("input", (event) => {
    const field = event.target;
    if (field.dataset.filter) filter(field);
    else if (field.form?.dataset.outdated !== undefined) outdated(field.form);
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
    const drop = event.target.closest?.(".drop");
    if (!drop) return;
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) send(drop, event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });
})();
