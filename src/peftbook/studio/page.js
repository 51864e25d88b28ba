/* What the page does without the server: buttons become events, tables sort and filter, files are sent. */
"use strict";
window.studio = (() => {
  const dark = () => document.body.classList.contains("dark");
  const remember = (value) => { try { localStorage.setItem("studio-theme", value); } catch { /* private mode */ } };
  const recall = () => { try { return localStorage.getItem("studio-theme"); } catch { return null; } };
  const theme = (value) => document.body.classList.toggle("dark", value === "dark");
  const chosen = recall();
  if (chosen) { theme(chosen); new MutationObserver(() => { if (recall() && dark() !== (recall() === "dark")) theme(recall()); }).observe(document.body, { attributes: true, attributeFilter: ["class"] }); }

  /* ---- where we are: the address names project and step, so that a tab can be closed, kept or sent ---- */
  const where = () => { const asked = new URLSearchParams(location.search); return [asked.get("project") || "", asked.get("step") || "data"]; };
  const go = (change) => {
    const asked = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(change)) value ? asked.set(name, value) : asked.delete(name);
    const next = asked.size ? `?${asked}` : location.pathname;
    if (next !== (location.search || location.pathname)) history.pushState(null, "", next);
  };
  const at = (project) => { if (project !== (where()[0])) go({ project, step: "" }); document.title = project ? `${document.querySelector("#title h1")?.textContent || "Project"} · peftbook studio` : "peftbook studio"; };
  const step = (name) => { if (where()[0]) go({ step: name === "data" ? "" : name }); };
  addEventListener("popstate", () => location.reload());

  /* ---- tables ---- */
  const value = (row, place) => { const cell = row.cells[place]; const text = cell?.dataset.value ?? cell?.textContent.trim() ?? ""; return text !== "" && !isNaN(text) ? Number(text) : text.toLowerCase(); };
  const sort = (head) => {
    const cell = head.closest("th"), body = head.closest("table").tBodies[0], place = Number(head.dataset.sort);
    const up = cell.getAttribute("aria-sort") === "descending";
    for (const other of cell.parentNode.cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => { const x = value(a, place), y = value(b, place); return x < y ? -1 : x > y ? 1 : 0; });
    body.append(...(up ? rows : rows.reverse()));
  };
  const filter = (field, element) => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of element.querySelectorAll(`table.${field.dataset.filter} tbody tr`)) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  };

  /* ---- how long something has been under way, since it was first seen ---- */
  setInterval(() => {
    for (const element of document.querySelectorAll("[data-since]")) {
      const since = (element.dataset.since ||= Date.now());
      element.textContent = `${Math.round((Date.now() - since) / 1000)} s`;
    }
  }, 500);

  /* ---- uploads ---- */
  const send = (drop, body, name, trigger, event) => {
    const most = Number(drop.dataset.max), bar = drop.querySelector(".bar");
    if (!body.size) return trigger(event, { act: "refused", words: `${name || "The text"} is empty: give a header and rows.` });
    if (body.size > most) return trigger(event, { act: "refused", words: `${name || "The text"} has ${body.size.toLocaleString("en")} bytes, more than the cap of ${drop.dataset.said}: cut it.` });
    const request = new XMLHttpRequest();
    const show = (share) => { bar.hidden = share === null; bar.firstElementChild.style.width = `${share || 0}%`; bar.setAttribute("aria-valuenow", Math.round(share || 0)); };
    const failed = (words) => { show(null); trigger(event, { act: "refused", words }); };
    request.upload.onprogress = (e) => show(100 * e.loaded / e.total);
    request.onload = () => {
      show(null);
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* a sentence */ }
      answer.draft ? trigger(event, { act: "uploaded", draft: answer.draft }) : failed(answer.error || request.responseText.trim() || "The upload was refused.");
    };
    request.onerror = () => failed("The upload broke off: check that the studio still runs, then try again.");
    request.open("POST", "/studio/upload");
    request.setRequestHeader("content-type", "application/octet-stream");
    request.setRequestHeader("x-filename", encodeURIComponent(name));
    show(0);
    request.send(body);
  };

  /* ---- one panel: whatever is clicked or typed in it ---- */
  const panel = (element, trigger, event) => {
    const take = (drop, files) => { if (files.length) send(drop, files[0], files[0].name, trigger, event); };
    element.addEventListener("click", (e) => {
      const hit = e.target.closest("button, a, summary");
      if (!hit || !element.contains(hit)) return;
      const drop = hit.closest(".drop");
      if (hit.dataset.sort !== undefined) sort(hit);
      else if (hit.dataset.theme !== undefined) { remember(dark() ? "light" : "dark"); theme(dark() ? "light" : "dark"); }
      else if (hit.dataset.copy !== undefined) navigator.clipboard?.writeText(hit.parentNode.querySelector("pre").textContent).then(() => { hit.textContent = "Copied"; });
      else if (hit.dataset.paste !== undefined) { const box = drop.querySelector(".paste"); box.hidden = !box.hidden; if (!box.hidden) box.querySelector("textarea").focus(); }
      else if (hit.dataset.send !== undefined) send(drop, new Blob([drop.querySelector("textarea").value]), "", trigger, event);
      else if (hit.dataset.act) {
        if (e.ctrlKey || e.metaKey || e.shiftKey) return;
        e.preventDefault();
        trigger(event, { ...hit.dataset });
      }
    });
    element.addEventListener("change", (e) => { if (e.target.type === "file") { take(e.target.closest(".drop"), e.target.files); e.target.value = ""; } });
    element.addEventListener("input", (e) => { if (e.target.dataset.filter) filter(e.target, element); });
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) element.addEventListener(kind, (e) => {
      const drop = e.target.closest?.(".drop");
      if (!drop) return;
      e.preventDefault();
      drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") take(drop, e.dataTransfer.files);
    });
  };
  return { panel, where, at, step };
})();
