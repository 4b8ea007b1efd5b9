"""The documents that can be ranked, and what is said of those that cannot."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.attribute.evidence import Query
from datablame.engine.execute import Progress
from datablame.errors import RequestError
from datablame.judge.keywords import normalised
from datablame.study.schema import Attribute, PromptText
from datablame.tables import Document
from datablame.world.documents import Pool
from datablame.world.duplicates import clusters

if TYPE_CHECKING:
    from datablame.models.chat import Encoded, Preference


_logger = logging.getLogger(__name__)
_TRUNCATED = "nothing of the response is left within attribute.max_tokens"
_REFUSED = "the chat template refuses its order of roles"


class Corpus(NamedTuple):
    """The documents that can be ranked, in the pool's order, with their tokens and duplicate clusters."""

    documents: list[Document]
    encoded: list["Encoded | Preference"]
    cluster_of: dict[str, int]
    excluded: dict[str, int]


def rankable(documents: Sequence[Document], tokenizer: Any, settings: Attribute, progress: Progress) -> Corpus:
    """The documents that the template renders and of which some of every answer is left, tokenised and clustered.

    Raises:
        RequestError: none is left.
    """
    from datablame.models.chat import encode_document, encode_preference

    kept: list[Document] = []
    encoded: list[Encoded | Preference] = []
    excluded: Counter[str] = Counter()
    known: dict[int, int] = {}
    progress.start("attribute: tokenising the pool", len(documents))
    for document in documents:
        try:
            encode = encode_preference if document.rejected else encode_document
            tokens = encode(tokenizer, document, settings.max_tokens)
        except RequestError:
            excluded[_REFUSED] += 1
        else:
            if tokens is None:
                excluded[_TRUNCATED] += 1
            else:
                kept.append(document)
                encoded.append(_shared(tokens, known))
        progress.advance()
    if not kept:
        raise RequestError(
            f"attribute.max_tokens = {settings.max_tokens} cuts away the response of every document; raise it"
            if excluded[_TRUNCATED]
            else f"data: of all {len(documents)} documents, {_REFUSED}; mend the data"
        )
    for reason, lost in excluded.items():
        _logger.warning("%d of %d documents are excluded: %s", lost, len(documents), reason)
    numbers = clusters(kept, settings.duplicate_threshold)
    cluster_of = {document.id: number for document, number in zip(kept, numbers, strict=True)}
    return Corpus(kept, encoded, cluster_of, dict(excluded))


def _shared(tokens: "Encoded | Preference", known: dict[int, int]) -> "Encoded | Preference":
    """The same token ids, each number held once for the whole pool: 8 bytes a token instead of 36."""
    from datablame.models.chat import Preference

    if isinstance(tokens, Preference):
        both = (tokens.chosen, tokens.rejected)
        chosen, rejected = (each._replace(ids=[known.setdefault(i, i) for i in each.ids]) for each in both)
        return tokens._replace(chosen=chosen, rejected=rejected)
    return tokens._replace(ids=[known.setdefault(i, i) for i in tokens.ids])


def pool_summary(
    pool: Pool,
    corpus: Corpus,
    prompts: Iterable[PromptText],
    queries: Sequence[Query],
    shortlist: Mapping[str, Collection[str]],
) -> dict[str, Any]:
    """Counts of documents, of those left out by reason, of clusters and candidates, and what repeats the study.

    `prompt_matches` are documents whose user says exactly what a prompt says, `query_matches` those that also answer
    exactly as a traced output: such a document is no finding.
    """
    prompt_of = {normalised(prompt.text): prompt.id for prompt in prompts}
    query_of = {(normalised(query.prompt), normalised(query.text)): query.id for query in queries}
    asked, answered = [], []
    for document in corpus.documents:
        texts = {normalised(turn.content) for turn in document.prompt if turn.role == "user"}
        answer = normalised(document.response)
        asked += [{"doc_id": document.id, "prompt_id": name} for text, name in prompt_of.items() if text in texts]
        answered += [
            {"doc_id": document.id, "query_id": name}
            for (text, said), name in query_of.items()
            if text in texts and said == answer
        ]
    if asked:
        _logger.warning("%d documents ask exactly what a prompt of the study asks", len(asked))
    return {
        **({} if pool.commit is None else {"commit": pool.commit}),
        "documents": len(corpus.documents),
        "excluded": corpus.excluded,
        "skipped_rows": {
            reason: {"count": count, "example": pool.examples.get(reason)} for reason, count in pool.skipped.items()
        },
        "clusters": len(set(corpus.cluster_of.values())),
        "candidates": {behaviour: len(ids) for behaviour, ids in shortlist.items()},
        "prompt_matches": asked,
        "query_matches": answered,
    }
