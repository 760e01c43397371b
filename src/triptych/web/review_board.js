// The keys of the tab Catalogue: 1, 2 and 3 give the chosen photo a verdict, S swaps the sides of its item, U takes
// the last change back, arrows choose. What gradio gives to this code: `element`, `server` and `watch`.
const WORDS = { 1: "human", 2: "garment", 3: "rejected" };
const done = []; // what stood there before each change, the newest last
let sending = Promise.resolve(); // one change after the other, in the order of the keys

const cards = () => [...element.querySelectorAll(".review-card:not(:disabled)")];
const chosen = () => element.querySelector(".review-card[aria-current=true]") ?? cards()[0];
const say = (words) => { element.querySelector(".review-said").textContent = words; };

function choose(card, focus = true) {
  if (!card) return;
  for (const other of element.querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
  card.setAttribute("aria-current", "true");
  if (focus) card.focus();
}

function show(answer) {
  for (const [key, { label, text }] of Object.entries(answer.cards)) {
    const card = element.querySelector(`[data-key="${key}"]`);
    if (!card) continue; // on another page
    card.dataset.label = label;
    card.querySelector(".review-text").outerHTML = text;
  }
  element.querySelector(".review-told").innerHTML = answer.summary;
  say(answer.said);
}

function send(call, after) {
  sending = sending.then(async () => {
    const answer = await call().catch(() => ({ error: "The server does not answer." }));
    if (answer?.error) return say(answer.error);
    if (!answer) return;
    show(answer);
    after?.(answer);
  });
}

const remember = ({ before }) => done.push(before);

function decide(word) {
  const card = chosen();
  if (!card) return;
  send(() => server.decide({ [card.dataset.key]: word }), remember);
  choose(cards()[cards().indexOf(card) + 1] ?? card);
}

function swap() {
  const card = chosen();
  if (card) send(() => server.swap(card.dataset.key), remember);
}

function undo() {
  send(async () => {
    if (!done.length) return { error: "There is nothing to undo." };
    return server.decide(done[done.length - 1]);
  }, ({ before }) => {
    done.pop();
    choose(element.querySelector(`[data-key="${Object.keys(before)[0]}"]`));
  });
}

function move(key) {
  const all = cards(), at = all.indexOf(chosen());
  const line = all.filter((card) => card.offsetTop === all[0].offsetTop).length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: line, ArrowUp: -line };
  choose(all[Math.min(all.length - 1, Math.max(0, at + steps[key]))]);
}

document.addEventListener("keydown", (event) => {
  if (!element.isConnected || !element.offsetParent || event.altKey || event.metaKey) return;
  if (event.target.closest?.("input, textarea, select, [contenteditable=true], [role=listbox]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const back = key === "u" || (key === "z" && event.ctrlKey);
  if (event.ctrlKey && !back) return;
  if (!cards().length) return;
  if (WORDS[key]) decide(WORDS[key]);
  else if (back) undo();
  else if (key === "s") swap();
  else if (key.startsWith("Arrow") && element.contains(event.target)) move(key);
  else return;
  event.preventDefault();
});

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.key) choose(button);
  else if (button.dataset.word) decide(button.dataset.word);
  else if (button.dataset.do === "swap") swap();
  else if (button.dataset.do === "undo") undo();
});

element.addEventListener("change", (event) => {
  if (event.target.tagName !== "SELECT" || !event.target.value) return;
  decide(event.target.value);
  event.target.value = "";
});

watch("value", () => choose(cards()[0], false));
choose(cards()[0], false);
