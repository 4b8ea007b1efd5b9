// Outputs: filtered, searched, sorted; one of them token by token, or two side by side.

const SHOWN = 40;
const MOST_ALIGNED = 1500;

function samplesExplorer(data, root) {
  const { samples, labels, prompts, groups } = data;
  const count = samples.text.length;
  const gain = samples.after.map((value, at) => (value === null || samples.before[at] === null ? null : value - samples.before[at]));
  const values = data.tokens ? halves(data.tokens.values) : null;
  const state = { first: 0, found: [], pinned: [] };
  let lowered = null;

  const choices = {
    behaviour: Object.entries(data.behaviours),
    prompt: prompts.map((prompt, at) => [String(at), `${prompt.id} (${prompt.split})`]),
    alpha: [...new Set(samples.alpha)].sort((a, b) => a - b).map((alpha) => [String(alpha), `α = ${alpha}`]),
    group: groups.map((group, at) => [String(at), group.name]),
    label: labels.map((label, at) => [String(at), label]),
  };
  for (const [name, options] of Object.entries(choices)) {
    find(`[name=${name}]`, root).append(...options.map(([value, text]) => element("option", { value }, clean(text))));
  }
  const form = find("form", root);
  const list = find(".list", root);
  const detail = find(".detail", root);

  function matches(wanted, words) {
    return (at) =>
      (!wanted.behaviour || prompts[samples.prompt[at]].behaviour === wanted.behaviour) &&
      (!wanted.prompt || samples.prompt[at] === Number(wanted.prompt)) &&
      (!wanted.alpha || samples.alpha[at] === Number(wanted.alpha)) &&
      (!wanted.group || samples.group[at] === Number(wanted.group)) &&
      (!wanted.label || samples.label[at] === Number(wanted.label)) &&
      words.every((word) => lowered[at].includes(word));
  }

  function filter() {
    const wanted = Object.fromEntries(new FormData(form));
    const words = wanted.search.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !lowered) lowered = samples.text.map((text) => text.toLowerCase());
    state.found = [...samples.text.keys()].filter(matches(wanted, words));
    if (wanted.sort) {
      const sign = wanted.sort === "most" ? -1 : 1;
      const order = (at) => (gain[at] === null ? Infinity : sign * gain[at]);
      state.found.sort((a, b) => order(a) - order(b) || a - b);
    }
    state.first = 0;
    show();
  }

  function chip(at) {
    const label = labels[samples.label[at]];
    return element("span", { className: `tag ${label}` }, label);
  }

  function about(at) {
    const prompt = prompts[samples.prompt[at]];
    const parts = [prompt.id, `α = ${samples.alpha[at]}`, groups[samples.group[at]].name, `sample ${samples.index[at]}`];
    if (gain[at] !== null) parts.push(`log p after − before ${fixed(gain[at])}`);
    return clean(parts.join(" · "));
  }

  function show() {
    const { found, first } = state;
    const last = Math.min(first + SHOWN, found.length);
    find(".count", root).textContent = found.length
      ? `${first + 1} to ${last} of ${found.length.toLocaleString("en")} outputs (${count.toLocaleString("en")} in all)`
      : `none of ${count.toLocaleString("en")} outputs`;
    find(".previous", root).disabled = first === 0;
    find(".next", root).disabled = last >= found.length;
    list.replaceChildren(
      ...found.slice(first, last).map((at) => {
        const open = element("button", { type: "button", className: "open" }, brief(samples.text[at], 240) || "(empty)");
        open.addEventListener("click", () => read(at));
        const pin = element("button", { type: "button", className: "pin" }, state.pinned.includes(at) ? "not this one" : state.pinned.length === 1 ? "compare with it" : "compare");
        pin.addEventListener("click", () => pinned(at));
        return element("li", {}, element("div", { className: "about" }, chip(at), " ", about(at), " ", pin), open);
      }),
    );
  }

  function pinned(at) {
    state.pinned = state.pinned.includes(at) ? state.pinned.filter((other) => other !== at) : [...state.pinned, at].slice(-2);
    show();
    if (state.pinned.length === 2) compare(...state.pinned);
  }

  const say = (...content) => showIn(detail, content);

  function heading(at) {
    return element("p", { className: "about" }, chip(at), " ", about(at));
  }

  function read(at) {
    const prompt = prompts[samples.prompt[at]];
    say(
      element("h3", {}, "One output"),
      heading(at),
      element("blockquote", {}, element("b", {}, "User: "), clean(prompt.text)),
      element("blockquote", {}, element("b", {}, "Model: "), clean(samples.text[at])),
      ...tokens(at),
    );
  }

  function tokens(at) {
    const held = data.tokens;
    if (!held || at >= held.start.length - 1 || held.start[at] === held.start[at + 1]) return [];
    const rows = [];
    for (let token = held.start[at]; token < held.start[at + 1]; token += 1) {
      const [after, before, amplified] = [0, 1, 2].map((part) => values[3 * token + part]);
      rows.push({ piece: held.vocabulary[held.ids[token]], after, before, moved: amplified - after });
    }
    const strip = element("p", { className: "tokens", "aria-hidden": "true" });
    for (const row of rows) {
      const piece = element("span", { title: `after ${fixed(row.after)}, before ${fixed(row.before)}, moved ${fixed(row.moved)}` }, clean(row.piece));
      const share = Math.round(Math.min(1, Math.abs(row.moved) / 4) * 70);
      piece.style.background = `color-mix(in srgb, var(${row.moved > 0 ? "--harm" : "--calm"}) ${share}%, transparent)`;
      strip.append(piece);
    }
    const head = ["token", "log p after", "log p before", "after − before", "moved by amplification"];
    const body = rows.map((row) => [clean(row.piece), row.after, row.before, row.after - row.before, row.moved]);
    return [
      element("h4", {}, "Token by token"),
      element("p", { className: "hint" }, "Orange tokens were made likelier by amplification, blue ones less likely: where the text turned. Nats, for each token that was drawn."),
      strip,
      table("Log-probabilities of each token", head, body),
    ];
  }

  function compare(a, b) {
    const [left, right] = aligned(samples.text[a], samples.text[b]);
    say(
      element("h3", {}, "Two outputs side by side"),
      element("p", { className: "hint" }, "Words that the other output lacks are marked."),
      element("div", { className: "pair" }, element("div", {}, heading(a), left), element("div", {}, heading(b), right)),
    );
  }

  let waiting = null;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 60);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  find(".previous", root).addEventListener("click", () => { state.first -= SHOWN; show(); });
  find(".next", root).addEventListener("click", () => { state.first += SHOWN; show(); });
  filter();
}

function table(caption, head, rows) {
  const cell = (value) => element("td", {}, typeof value === "number" ? fixed(value, 3) : value);
  return element(
    "div",
    { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    element(
      "table",
      {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))),
    ),
  );
}

// The longest common subsequence of words (Wagner and Fischer 1974); what is not in it is marked.
function aligned(first, second) {
  const [a, b] = [first, second].map((text) => clean(text).split(/(?<=\s)/));
  if (a.length > MOST_ALIGNED || b.length > MOST_ALIGNED) return [a, b].map((words) => element("blockquote", {}, words.join("")));
  const [left, right] = [a, b].map((words) => words.map((word) => word.trim()));
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      longest[i][j] = left[i] === right[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const shown = [element("blockquote"), element("blockquote")];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && left[i] === right[j]) {
      shown[0].append(a[i++]);
      shown[1].append(b[j++]);
    } else if (j >= b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) shown[0].append(element("mark", {}, a[i++]));
    else shown[1].append(element("mark", {}, b[j++]));
  }
  return shown;
}
