// A bet before the verdict: each card shows its claim alone until the reader has guessed. The guesses stay in this browser.
// Without this script the cards are as they are.

const PLACE = "peftbook-bets";
const SIDES = { holds: "it holds", fails: "it fails", open: "these runs cannot tell" };

/** What was guessed before, by study; nothing where the browser keeps nothing. */
function remembered() {
  try {
    const found = JSON.parse(localStorage.getItem(PLACE));
    return found && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

function remember(guesses) {
  try {
    if (guesses) localStorage.setItem(PLACE, JSON.stringify(guesses));
    else localStorage.removeItem(PLACE);
  } catch { /* a browser that keeps nothing plays one page long */ }
}

/** How many of the guesses are right, and how many whoever always says the same gets on the same claims, best first. */
function score(guesses, sides) {
  const guessed = Object.keys(sides).filter((study) => Object.hasOwn(SIDES, guesses[study]));
  const right = guessed.filter((study) => guesses[study] === sides[study]).length;
  const always = Object.keys(SIDES).map((side) => [side, guessed.filter((study) => sides[study] === side).length]);
  return { right, of: guessed.length, left: Object.keys(sides).length - guessed.length, always: always.sort((a, b) => b[1] - a[1])[0] };
}

function told({ right, of, left, always }) {
  if (!of) return `${left} claims. Say of each what you expect of the runs; its verdict shows when you have.`;
  const rival = `Saying “${SIDES[always[0]]}” each time would have been right ${always[1]} ${always[1] === 1 ? "time" : "times"}.`;
  return `${right} of ${of} right${left ? `, ${left} to go` : ""}. ${rival}`;
}

function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", action);
  return made;
}

/** Three buttons below a claim; pressing one opens the card. */
function question(card, guess) {
  const place = document.createElement("fieldset"), legend = document.createElement("legend");
  place.className = "bet";
  legend.textContent = "Your guess";
  const choices = Object.entries(SIDES).map(([side, text]) => {
    const made = button(text, () => guess(side));
    made.dataset.side = side;
    return made;
  });
  place.append(legend, ...choices, document.createElement("p"));
  card.querySelector("h3").after(place);
}

function show(card, guess) {
  const place = card.querySelector(".bet"), right = guess === card.dataset.side;
  card.classList.toggle("is-covered", !guess);
  for (const one of place.querySelectorAll("button")) {
    one.setAttribute("aria-pressed", String(one.dataset.side === guess));
    one.disabled = Boolean(guess) && one.dataset.side !== guess;
  }
  place.lastChild.textContent = guess ? (right ? "Right." : `The runs: ${SIDES[card.dataset.side]}.`) : "";
}

function play(board) {
  const cards = [...board.querySelectorAll(".claim[data-side]")];
  const sides = Object.fromEntries(cards.map((card) => [card.id, card.dataset.side]));
  const bar = document.createElement("div"), said = document.createElement("p");
  let guesses = remembered();
  const showAll = () => {
    for (const card of cards) show(card, guesses[card.id]);
    said.textContent = told(score(guesses, sides));
  };
  const on = (playing) => {
    board.classList.toggle("is-betting", playing);
    start.hidden = playing;
    again.hidden = stop.hidden = !playing;
    if (playing) showAll();
    else {
      said.textContent = "";
      for (const card of cards) card.classList.remove("is-covered");
    }
  };
  const start = button("Guess before you look", () => {
    board.querySelector("#show-all").checked = true;
    on(true);
    stop.focus();
  });
  const again = button("Start again", () => {
    guesses = {};
    remember(null);
    showAll();
  });
  const stop = button("Show all verdicts", () => {
    on(false);
    start.focus();
  });
  for (const card of cards) {
    question(card, (side) => {
      if (guesses[card.id]) return;
      guesses = { ...guesses, [card.id]: side };
      remember(guesses);
      showAll();
    });
  }
  bar.className = "bets";
  said.setAttribute("role", "status");
  bar.append(start, again, stop, said);
  board.prepend(bar);
  on(false);
}

if (typeof module === "object") module.exports = { score, told };
else for (const board of document.querySelectorAll(".claims")) play(board);
