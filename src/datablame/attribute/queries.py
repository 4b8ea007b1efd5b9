"""Which harmful outputs are traced, and which documents share words with them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datablame.attribute.evidence import Query
from datablame.attribute.rankings import rounded
from datablame.study.schema import Behaviour, PromptText
from datablame.world.bm25 import top

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def choose_queries(
    samples: Sequence[Mapping[str, Any]], prompts: Sequence[PromptText], alpha_star: float | None, n: int
) -> list[Query]:
    """Up to `n` harmful outputs to attribution prompts for each behaviour, distinct texts, prompts taking turns.

    First those at 0 < alpha <= alpha*, the largest alpha first; then alpha 0; then alphas above alpha*, the smallest
    first. Within an alpha and prompt the sample index decides.
    """
    text_of = {prompt.id: prompt.text for prompt in prompts}
    order = {prompt.id: place for place, prompt in enumerate(prompts)}
    harmful = [
        row
        for row in samples
        if row["split"] == "attribution"
        and row["label"] == "harmful"
        and row["prompt_id"] in order
        and row["text"].strip()
    ]
    chosen = []
    for behaviour in dict.fromkeys(prompt.behaviour for prompt in prompts):
        own = [row for row in harmful if row["behaviour"] == behaviour]
        seen: set[str] = set()
        turns: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        count: dict[tuple[float, str], int] = {}
        for row in sorted(
            own, key=lambda row: (_place(row["alpha"], alpha_star), order[row["prompt_id"]], row["index"])
        ):
            if row["text"].strip() in seen:
                continue
            seen.add(row["text"].strip())
            turn = count[row["alpha"], row["prompt_id"]] = count.get((row["alpha"], row["prompt_id"]), 0) + 1
            turns[_place(row["alpha"], alpha_star), turn, order[row["prompt_id"]]] = row
        for number, key in enumerate(sorted(turns)[:n]):
            row = turns[key]
            chosen.append(_query(f"{behaviour}-q{number + 1}", row, text_of))
    return chosen


def safe_outputs(
    samples: Sequence[Mapping[str, Any]],
    prompts: Sequence[PromptText],
    queries: Sequence[Query],
    alpha_star: float | None,
    n: int,
) -> list[Query]:
    """Up to `n` harmless outputs to each prompt of a behaviour's queries, distinct texts, alphas as for the queries.

    A behaviour without any has up to `n` to each of its other attribution prompts; without any there, it has none.
    """
    text_of = {prompt.id: prompt.text for prompt in prompts}
    harmless = [
        row
        for row in samples
        if row["split"] == "attribution"
        and row["label"] == "harmless"
        and row["prompt_id"] in text_of
        and row["text"].strip()
    ]
    harmless.sort(key=lambda row: (_place(row["alpha"], alpha_star), row["index"]))
    found = []
    for behaviour in dict.fromkeys(query.behaviour for query in queries):
        asked = {query.prompt_id for query in queries if query.behaviour == behaviour}
        own = [row for row in harmless if row["behaviour"] == behaviour]
        own = [row for row in own if row["prompt_id"] in asked] or own
        chosen = []
        for prompt in text_of:
            distinct: dict[str, Mapping[str, Any]] = {}
            for row in own:
                if row["prompt_id"] == prompt:
                    distinct.setdefault(row["text"].strip(), row)
            chosen += list(distinct.values())[:n]
        found += [_query(f"{behaviour}-s{number}", row, text_of) for number, row in enumerate(chosen, 1)]
    return found


def _query(name: str, row: Mapping[str, Any], text_of: Mapping[str, str]) -> Query:
    return Query(
        id=name,
        behaviour=row["behaviour"],
        prompt_id=row["prompt_id"],
        alpha=row["alpha"],
        index=row["index"],
        prompt=text_of[row["prompt_id"]],
        text=row["text"],
        finish_reason=row["finish_reason"],
    )


def query_text(query: Query) -> str:
    """What BM25 looks for: the prompt and the output."""
    return f"{query.prompt}\n{query.text}"


def candidates(
    scores: "NDArray[np.float64]", queries: Sequence[Query], behaviours: Sequence[Behaviour], ids: Sequence[str], n: int
) -> dict[str, list[str]]:
    """For each behaviour the union over its queries of the `n` best documents by BM25, sorted by id.

    `scores` has the shape (queries, documents); each query's are rounded first.
    """
    return {
        behaviour.id: sorted(
            {
                doc_id
                for query, row in zip(queries, scores, strict=True)
                if query.behaviour == behaviour.id
                for doc_id in top(rounded(row), ids, n)
            }
        )
        for behaviour in behaviours
    }


def _place(alpha: float, alpha_star: float | None) -> tuple[int, float]:
    limit = alpha_star or 0.0
    if 0 < alpha <= limit:
        return 0, -alpha
    return (1, 0.0) if alpha == 0 else (2, alpha)
