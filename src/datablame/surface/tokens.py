"""Log-probabilities of single tokens on their way from the sampler through the journal into their table."""

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datablame.engine.files import Journal
from datablame.tables import Sample, SampleTokens
from datablame.tables.store import schema_of
from datablame.world import World

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 1024
"""Outputs that are held at a time; each row group has as many."""
_KIND = np.dtype("<f2")


def packed(token_log_p: Sequence[tuple[float, float, float]]) -> str:
    """Three numbers a token as text: 8 characters of the journal."""
    return base64.b64encode(np.array(token_log_p, _KIND).tobytes()).decode()


def token_parts(world: World, journal: Journal, samples: Sequence[Sample]) -> Iterator["pa.Table"]:
    """The rows of `SampleTokens` in the order of the samples, whose tokens the journal holds."""
    import pyarrow as pa

    from datablame.models.pair import agreed_tokens
    from datablame.models.pieces import pieces

    tokenizer = agreed_tokens(world.models).tokenizer
    drawn = (values for payload in journal.read().values() for values in payload)
    packed_of = {(v["prompt_id"], v["alpha"], v["index"]): v["token_log_p"] for v in drawn}
    for start in range(0, len(samples), _ROWS):
        some = samples[start : start + _ROWS]
        texts = [packed_of[sample.prompt_id, sample.alpha, sample.index] for sample in some]
        triples = np.frombuffer(b"".join(map(base64.b64decode, texts)), _KIND).reshape(-1, 3)
        ends = np.cumsum([0, *(len(sample.drawn_ids) for sample in some)])
        numbers = [pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(column)) for column in triples.T]
        names = ([getattr(sample, name) for sample in some] for name in ("prompt_id", "alpha", "index"))
        read = [pieces(tokenizer, sample.drawn_ids) for sample in some]
        yield pa.table([*names, read, *numbers], schema=schema_of(SampleTokens))
