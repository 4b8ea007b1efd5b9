"""The linear datamodeling score: do a method's scores predict what training on random subsets makes of the outputs?

Half of the pool is drawn at random, before is trained on it as the headline's arms are, one epoch, and the mean
log-probability of every traced output is measured; a method predicts the sum of its scores over the subset (Ilyas et
al., arXiv 2202.00622; Park et al., arXiv 2303.14186).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import datablame.tables as tables
from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress, run_items
from datablame.engine.files import Journal, digest
from datablame.engine.phase import Tables
from datablame.errors import RequestError, problem
from datablame.seeds import generator, stream_key
from datablame.stats.intervals import Interval
from datablame.stats.standings import datamodeling_score
from datablame.world import World
from datablame.world.world import load

FOLDER = "lds"
_LEAST_SUBSETS = 3
"""Of fewer, no rank correlation means anything."""


class Output(NamedTuple):
    """A traced output as tokens."""

    behaviour: str
    ids: tuple[int, ...]
    prompt_tokens: int


class _State(NamedTuple):
    """What a worker holds."""

    world: World
    model: Any
    documents: Sequence[Any]


def check_subsets(study: Study, subsets: int) -> None:
    """Refuse a study whose headline is not all weights trained from before; RequestError."""
    if subsets and (study.patch.headline, study.patch.retrain.method) != ("retrain", "full"):
        raise RequestError(problem("leaderboard", "no lds", subsets=subsets))


def subset(world: World, number: int) -> list[int]:
    """Rows of the pool, half of them, at random by the study's seed and the subset's number; they rise."""
    n = len(world.pool)
    rows = generator("lds", world.seed, number).permutation(n)[: n // 2].tolist()
    return sorted(rows)


def datamodeling_scores(
    root: Path, out: Path, subsets: int, *, execution: Execution, progress: Progress
) -> dict[str, tuple[float, Interval] | None]:
    """Each method's score with its interval over subsets, from the run folder of one organism.

    Subsets that are measured stand in a journal below `out` and are not trained again. Empty where nothing was traced,
    or where there are fewer than three subsets.
    """
    run, world = Tables(root), load(root)
    outputs = _outputs(world, run)
    if not outputs or subsets < _LEAST_SUBSETS:
        return {}
    training = world.study.patch.training_of("retrain").model_dump(mode="json", include={"batch", "learning_rate"})
    depends = [[world.part(part) for part in ("identity", "pool")], training, outputs]
    journal = Journal(out / FOLDER / f"{digest(depends)[:16]}.jsonl")
    keys = [f"{number:03d}" for number in range(subsets)]
    finished = journal.read()
    run_items(
        partial(_load, world),
        partial(_retrained, outputs),
        {key: int(key) for key in keys if key not in finished},
        execution=execution,
        done=journal.append,
        progress=progress,
        description="leaderboard: random subsets",
        already=len(finished),
    )
    measured = {int(key): values for key, values in journal.read().items() if key in keys}
    behaviours = list(dict.fromkeys(output.behaviour for output in outputs))
    of = {name: [index for index, output in enumerate(outputs) if output.behaviour == name] for name in behaviours}
    true = np.array([[np.mean([values[i] for i in of[name]]) for name in behaviours] for values in measured.values()])
    members = np.zeros((len(measured), len(world.pool)))
    for row, number in enumerate(measured):
        members[row, subset(world, number)] = 1
    return {
        info.name: datamodeling_score(
            true, members @ _scores(world, run, info.name, behaviours), stream_key("lds", world.seed, info.name)
        )
        for info in run.rows(tables.MethodInfo)
    }


def _outputs(world: World, run: Tables) -> list[Output]:
    from datablame.models.chat import encode_prompt
    from datablame.models.pair import agreed_tokens

    queries = [query for query in run.rows(tables.Query) if query.harmful]
    if not queries:
        return []
    tokenizer = agreed_tokens(world.models).tokenizer
    prompts = {query.prompt: tuple(encode_prompt(tokenizer, query.prompt)) for query in queries}
    return [
        Output(query.behaviour, (*prompts[query.prompt], *query.token_ids), len(prompts[query.prompt]))
        for query in queries
    ]


def _scores(world: World, run: Tables, method: str, behaviours: Sequence[str]) -> NDArray[np.float64]:
    """Scores of shape (documents, behaviours); a document without one has the least that the method gave."""
    by_behaviour: dict[str, dict[int, float]] = {name: {} for name in behaviours}
    for row in run.rows(tables.Score, method=method):
        by_behaviour[row.behaviour][world.pool.row_of[row.doc_id]] = row.score
    matrix = np.zeros((len(world.pool), len(behaviours)))
    for column, scores in enumerate(by_behaviour.values()):
        matrix[:, column] = min(scores.values(), default=0.0)
        matrix[[*scores], column] = [*scores.values()]
    return matrix


def _load(world: World) -> _State:
    import torch

    from datablame.models.load import load_model

    models = world.models
    model = load_model(models.before, device=models.device, dtype=torch.float32, field="models.before")
    return _State(world, model, world.pool.encoded(range(len(world.pool))))


def _retrained(outputs: Sequence[Output], state: _State, number: int) -> list[float]:
    """The mean log-probability (nats a token) of every output after training on one subset."""
    from datablame.models.chat import Encoded, answers
    from datablame.models.likelihood import negative_log_likelihood, referred
    from datablame.models.training import Recipe, data_order
    from datablame.patch.finetune import full_finetune

    world, patch, seed = state.world, state.world.study.patch, state.world.seed
    settings, examples = patch.training_of("retrain"), [state.documents[row] for row in subset(world, number)]
    assert settings.batch is not None
    assert settings.learning_rate is not None
    assert world.tokens is not None
    steps = math.ceil(len(examples) / settings.batch)
    recipe = Recipe(steps, settings.batch, settings.learning_rate, micro_batch=patch.micro_batch)
    order = data_order(
        [max(len(answer.ids) for answer in answers(each)) for each in examples],
        recipe,
        stream_key("lds", seed, number),
    )
    if world.pool.summary.pairs:
        examples = referred(state.model, examples, recipe.micro_batch or recipe.batch)
    with full_finetune(state.model, examples, order, recipe, patch.beta):
        state.model.eval()
        return [
            -negative_log_likelihood(
                state.model,
                [Encoded(list(output.ids), output.prompt_tokens)],
                vocabulary_size=world.tokens.vocabulary_size,
                batch_tokens=world.study.attribute.batch_tokens,
            ).mean
            for output in outputs
        ]


Scores = Mapping[str, tuple[float, Interval] | None]
"""By method; None where its scores predict nothing that varies."""
