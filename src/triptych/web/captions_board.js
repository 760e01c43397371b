// The captions of the tab Catalogue: problems appear while somebody writes, Ctrl-Enter or the button saves. What
// gradio gives to this code: `element` and `server`.
const PAUSE = 350; // milliseconds without a key before a text is checked
const waiting = new WeakMap();

const parts = (inside) => {
  const card = inside.closest(".caption-card");
  return card && {
    card, field: card.querySelector("textarea"), problems: card.querySelector(".caption-problems"),
    say: (words) => { card.querySelector("[role=status]").textContent = words; },
  };
};
const unreachable = () => ({ error: "The server does not answer." });

async function check({ card, field, problems, say }) {
  const text = field.value;
  const answer = await server.lint({ key: card.dataset.key, text }).catch(unreachable);
  if (field.value !== text) return; // a later text is checked already
  if (answer.error) say(answer.error);
  else problems.innerHTML = answer.problems;
}

async function save({ card, field, problems, say }) {
  const text = field.value;
  say("saving …");
  const answer = await server.save({ key: card.dataset.key, text, was: card.dataset.was }).catch(unreachable);
  if (answer.error) return say(answer.error);
  card.dataset.was = answer.was;
  if (field.value === text) {
    field.value = answer.text;
    card.classList.remove("changed");
    problems.innerHTML = answer.problems;
  }
  say("saved; written by you");
}

element.addEventListener("input", (event) => {
  const found = parts(event.target);
  if (!found) return;
  found.card.classList.add("changed");
  found.say("not saved yet");
  clearTimeout(waiting.get(found.field));
  waiting.set(found.field, setTimeout(() => check(found), PAUSE));
});
element.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  save(parts(event.target));
});
element.addEventListener("click", (event) => {
  if (event.target.closest("button")) save(parts(event.target));
});
