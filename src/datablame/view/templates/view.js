// Whatever is marked as live is read anew while nobody works in it.
const live = document.querySelector("[data-refresh]");

async function refresh() {
  if (document.hidden || live.contains(document.activeElement)) return;
  const answer = await fetch(location.href).catch(() => null);
  if (!answer || !answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById(live.id);
  const open = [...live.querySelectorAll("details")].map((each) => each.open);
  if (!fresh) return;
  fresh.querySelectorAll("details").forEach((each, i) => { each.open = open[i] ?? each.open; });
  if (fresh.innerHTML !== live.innerHTML) live.replaceChildren(...fresh.childNodes);
}

if (live) setInterval(refresh, 1000 * live.dataset.refresh);
