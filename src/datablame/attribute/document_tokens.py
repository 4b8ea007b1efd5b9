"""Which tokens of the documents that are shown carried their gradients: a second look at few, once they are known."""

import logging
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.directions import load_directions
from datablame.attribute.evidence.gradients import chosen_checkpoint
from datablame.attribute.loop import WorkerState, results_of, save, saved, shards
from datablame.attribute.registry import Inquiry, WorkItem
from datablame.errors import PhaseError
from datablame.models.chat import answers
from datablame.models.source import first_line
from datablame.tables import DocumentTokens

_logger = logging.getLogger(__name__)


def document_tokens(inquiry: Inquiry, rows: NDArray[np.int64]) -> list[DocumentTokens]:
    """The shares of these rows of the pool in the directions that `gradients` left; none where they cannot be had."""
    from datablame.models.pair import agreed_tokens
    from datablame.models.pieces import pieces

    cut, n, ids = shards("document-tokens", rows), len(inquiry.behaviours), inquiry.world.pool.ids
    items = {key: WorkItem(partial(_item, key, shard.tolist(), n), ()) for key, shard in cut.items()}
    state = WorkerState(inquiry.world, inquiry.work.out / "items")
    results = results_of(inquiry, state, items, "tokens of documents")
    if reasons := [reason for reason in results.values() if reason is not None]:
        _logger.warning("attribute: which tokens of documents carried their gradients is not known: %s", reasons[0])
    if reasons or not items:
        return []
    tokenizer, shares = agreed_tokens(inquiry.world.models).tokenizer, saved(inquiry, items)["shares"]
    found, used = list[DocumentTokens](), 0
    for row, document in zip(rows.tolist(), inquiry.world.pool.encoded(rows.tolist()), strict=True):
        sides = []
        for answer in answers(document):
            text = pieces(tokenizer, answer.ids[answer.prompt_tokens :])
            sides.append((tuple(text), shares[used : (used := used + len(text))]))
        for column, behaviour in enumerate(inquiry.behaviours):
            columns = ((text, tuple(of_tokens[:, column].tolist())) for text, of_tokens in sides)
            found.append(DocumentTokens(ids[row], behaviour.id, *chain(*columns)))
    return found


def _item(key: str, rows: list[int], n: int, state: WorkerState) -> str | None:
    """Shares of the documents' tokens in the first `n` directions go to a file; the result is why there are none.

    They are made in float32, whatever the gradients were.
    """
    import torch

    from datablame.attribute.kernels.token_products import token_shares

    model, blocks, _ = chosen_checkpoint(state)
    if any(weight.is_meta for weight in model.parameters()):
        return "some weights are kept off the device"
    documents, kind = state.world.pool.encoded(rows), model.dtype
    try:
        towards = {name: part[:n] for name, part in load_directions(state, "directions", model).items()}
        shares = token_shares(model.float(), documents, towards, blocks, state.world.study.attribute.batch_tokens)
        joined = torch.cat([part for of_document in shares for part in of_document], 1)
        save(state.folder / f"{key}.safetensors", {"shares": joined.T}, f"the gradients of {key}")
    except NotImplementedError as error:
        return f"the checkpoint has an operation without a derivative in forward mode ({first_line(error)})"
    except (RuntimeError, MemoryError, PhaseError) as error:
        return first_line(error)
    finally:
        model.to(kind)
    return None
