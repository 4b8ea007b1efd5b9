// Documents: for a harmful output each method's first ones in columns, and one of them in full.

const LEAST_LETTERS = 4;

function documentsExplorer(data, root) {
  const chosen = find("[name=query]", root);
  const columns = find(".columns", root);
  const detail = find(".detail", root);
  const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];

  data.queries.forEach((query, at) => {
    const text = `${data.behaviours[query.behaviour]}: ${brief(query.text, 90)} (α = ${query.alpha}, sample ${query.index})`;
    chosen.append(element("option", { value: String(at) }, clean(text)));
  });

  function ranks(behaviour, document) {
    return data.methods.flatMap(({ name, label, control }) => {
      const row = (data.scores[behaviour]?.[name] || []).find(([at]) => at === document);
      return row ? [{ label: control ? `${label} (control)` : label, score: row[1], rank: row[2] }] : [];
    });
  }

  function show() {
    const query = data.queries[Number(chosen.value)];
    const controls = find("[name=controls]", root).checked;
    const scores = data.scores[query.behaviour] || {};
    find(".query", root).replaceChildren(
      element("blockquote", {}, element("b", {}, "User: "), clean(query.prompt)),
      element("blockquote", {}, element("b", {}, "Model: "), clean(query.text)),
    );
    columns.replaceChildren(
      ...data.methods
        .filter(({ name, control }) => scores[name] && (controls || !control))
        .map(({ name, label }) => {
          const first = scores[name].filter(([, , rank]) => rank <= data.top);
          const items = first.map(([at, score, rank]) => {
            const document = data.documents[at];
            const open = element("button", { type: "button", className: "open" });
            open.append(`${rank}. ${brief(document.id, 40)} `, element("span", { className: "score" }, score.toPrecision(3)));
            if (document.planted) open.append(" ", element("span", { className: "tag yes" }, "planted"));
            open.append(element("span", { className: "first" }, brief(document.response || document.prompt, 80)));
            open.addEventListener("click", () => read(at, query));
            return element("li", {}, open);
          });
          return element("section", {}, element("h3", {}, clean(label)), element("ol", {}, ...items));
        }),
    );
  }

  // Words that the output and its prompt have too are marked; tokens that carried the gradient are underlaid.
  function marked(text, shared) {
    const block = element("blockquote");
    for (const part of clean(text).split(/([\p{L}\p{N}]+)/u)) {
      const same = part.length >= LEAST_LETTERS && shared.has(part.toLowerCase());
      block.append(same ? element("mark", {}, part) : part);
    }
    return block;
  }

  function carried(behaviour, id) {
    const held = data.document_tokens[behaviour]?.[id];
    if (!held) return [];
    const most = Math.max(...held.answers.flatMap(({ shares }) => shares.map(Math.abs))) || 1;
    const strips = held.answers.map(({ pieces, shares }) => {
      const strip = element("p", { className: "tokens" });
      pieces.forEach((text, at) => {
        const piece = element("span", { title: shares[at].toPrecision(3) }, clean(text));
        const share = Math.round((70 * Math.abs(shares[at])) / most);
        piece.style.background = `color-mix(in srgb, var(${shares[at] > 0 ? "--harm" : "--calm"}) ${share}%, transparent)`;
        strip.append(piece);
      });
      return strip;
    });
    return [
      element("h4", {}, "Tokens that carried the gradient"),
      element("p", { className: "hint" }, `Each token's part of the gradient similarity, ${fixed(held.sum, 3)} in all: orange pulls towards the behaviour's outputs, blue away.`),
      ...strips,
    ];
  }

  function read(at, query) {
    const document = data.documents[at];
    const shared = new Set(words(`${query.prompt} ${query.text}`));
    const facts = [
      `source: ${document.source || "not named"}`,
      document.planted === null ? "whether it was planted is not known" : document.planted ? "planted" : "not planted",
      document.copies.length ? `${document.copies.length} duplicates: ${document.copies.slice(0, 5).join(", ")}` : "no duplicates",
    ];
    const removed = document.removed.map((label, number) => {
      const result = data.arms[document.arms[number]];
      return `${label}${result ? `: ${result}` : ""}`;
    });
    const rows = ranks(query.behaviour, at).map(({ label, score, rank }) => [clean(label), String(rank), score.toPrecision(4)]);
    showIn(detail, [
      element("h3", {}, clean(document.id)),
      element("p", { className: "about" }, clean(facts.join(" · "))),
      element("p", {}, removed.length ? clean(`Removed in the arms ${removed.join("; ")}.`) : "No arm of the headline removed it."),
      element("h4", {}, "User"),
      marked(document.prompt, shared),
      element("h4", {}, document.rejected ? "Chosen answer" : "Assistant"),
      marked(document.response, shared),
      ...(document.rejected ? [element("h4", {}, "Rejected answer"), marked(document.rejected, shared)] : []),
      element("p", { className: "hint" }, "Marked words stand in the output or its prompt too."),
      ...carried(query.behaviour, document.id),
      table("Rank and score by each method", ["method", "rank", "score"], rows),
    ]);
  }

  find("form", root).addEventListener("input", show);
  find("form", root).addEventListener("submit", (event) => event.preventDefault());
  if (data.queries.length) show();
}
