// Keys and buttons do the same. The next output comes only after the server has written the label to disk.
const at = (id) => document.getElementById(id);
const note = at("note");
let number = null;
let busy = false;

function show(item) {
  number = item.number;
  at("item").hidden = number === null;
  at("end").hidden = number !== null;
  for (const name of ["behaviour", "description", "rubric", "prompt", "text"]) at(name).textContent = item[name] ?? "";
  const progress = document.querySelector("progress");
  progress.max = item.total;
  progress.value = item.done;
  at("count").textContent = `${item.done} of ${item.total} labelled`;
  document.querySelector("[data-does=undo]").disabled = !item.undo;
  document.querySelector("[data-does=skip]").disabled = number === null;
  note.value = "";
  if (number !== null) at("item").focus({ preventScroll: true });
  scrollTo(0, 0);
}

async function ask(path, wish) {
  if (busy) return;
  busy = true;
  try {
    const how = wish && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(wish) };
    const answer = await fetch(path, how);
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
    at("problem").textContent = "";
  } catch (error) {
    at("problem").textContent = `Not written: ${error.message}. Is datablame label still running?`;
  }
  busy = false;
}

const act = (does) => ask("/done", { does, number: number ?? -1, note: note.value });
const choices = [...document.querySelectorAll("[data-label]")];
choices.forEach((each) => each.addEventListener("click", () => act(each.dataset.label)));
document.querySelectorAll("[data-does]").forEach((each) => each.addEventListener("click", () => act(each.dataset.does)));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target === note) {
    if (event.key === "Enter" || event.key === "Escape") at("item").focus();
    return;
  }
  const choice = choices[Number(event.key) - 1];
  if (choice && number !== null) act(choice.dataset.label);
  else if (event.key === "u") act("undo");
  else if (event.key === "s" && number !== null) act("skip");
  else if (event.key === "n") note.focus();
  else return;
  event.preventDefault();
});

ask("/item");
