// The page that searches: sections ranked by BM25 over title, chapter and text, the best sections of each page together.
// In readers' words: what is on the left is searched for as what is on the right, too.
const SYNONYMS = {
  oom: "memory fit",
  "out of memory": "memory fit",
  "catastrophic forgetting": "forgetting",
  overfit: "epochs validation",
  nan: "diverged fault",
  rag: "retrieval fine-tune",
  "multi gpu": "machines processes",
  deploy: "serve merge shipping",
  inference: "serve",
  "soft prompt": "prompt tuning",
  cost: "memory bytes seconds",
};
const STOP = new Set("a an and are as at be by for from how i in is it my of on or that the this to vs what when which with you".split(" "));
const fold = (text) => text.toLowerCase().replace(/[-_/]/g, " ");
const stem = (word) => (word.length > 3 ? word.replace(/(?<!s)s$/, "") : word);
const words = (text) => fold(text).match(/[\p{L}\p{N}.]+/gu)?.map((word) => stem(word.replace(/^\.+|\.+$/g, ""))).filter((word) => word && !STOP.has(word)) ?? [];

function search(index, query) {
  const asked = words(query);
  const more = Object.entries(SYNONYMS).filter(([from]) => ` ${asked.join(" ")} `.includes(` ${words(from).join(" ")} `));
  const terms = { queries: [asked.join(" "), more.map(([, to]) => to).join(" ")].filter(Boolean), combineWith: "OR" };
  const pages = new Map();
  for (const found of index.search(terms)) {
    const key = found.page;
    if (!pages.has(key)) pages.set(key, { ...found, parts: [] });
    pages.get(key).parts.push(found);
  }
  return [...pages.values()];
}

function snippet(text, terms) {
  const at = Math.max(0, text.search(new RegExp(`(?<![\\p{L}\\p{N}])(${terms.map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "iu")));
  const from = at < 80 ? 0 : text.indexOf(" ", at - 80) + 1;
  const to = text.length > from + 200 ? text.lastIndexOf(" ", from + 200) : text.length;
  return `${from ? "… " : ""}${text.slice(from, to)}${to < text.length ? " …" : ""}`;
}

document.addEventListener("DOMContentLoaded", () => {
  const index = new MiniSearch({
    idField: "id", fields: ["title", "chapter", "text"], storeFields: ["page", "anchor", "chapter", "title", "text"], tokenize: words,
    processTerm: (term) => term,
    searchOptions: { boost: { title: 3, chapter: 2 }, prefix: (term) => term.length > 3, fuzzy: (term) => (term.length > 5 ? 0.15 : false) },
  });
  index.addAll(SECTIONS.map((section, id) => ({ ...section, id })));
  const place = document.getElementById("search-results"), field = document.querySelector(".bd-search-container input[type=search]");
  const says = Object.assign(document.createElement("p"), { className: "search-summary" });
  const list = Object.assign(document.createElement("ul"), { className: "search" });
  says.setAttribute("role", "status");
  place.append(says, list);
  const show = () => {
    const query = field.value.trim(), found = query ? search(index, query) : [];
    says.textContent = query && `${found.length || "No"} page${found.length === 1 ? "" : "s"} on “${query}”.`;
    list.replaceChildren(...found.slice(0, 20).map((page) => {
      const item = document.createElement("li"), parts = page.parts.slice(0, 3);
      for (const part of parts) {
        const link = Object.assign(document.createElement("a"), { href: `${part.page}${part.anchor}`, textContent: part.anchor ? `${part.chapter} › ${part.title}` : part.chapter });
        const context = Object.assign(document.createElement("p"), { className: "context", textContent: snippet(part.text, part.terms) });
        item.append(link, context);
      }
      return item;
    }));
  };
  field.value = new URLSearchParams(location.search).get("q") ?? "";
  field.addEventListener("input", show);
  show();
});
