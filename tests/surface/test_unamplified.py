import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from datablame.config.schema import Surface
from datablame.seeds import stream_key
from datablame.stats.importance import balance_log_weights, score_interval
from datablame.surface.rates import importance, rates, unamplified, weigh, why_not
from datablame.surface.sampler.sampler import Request, sample
from datablame.surface.sampler.tokens import Settings
from datablame.tables import Sample, Unamplified

ALPHAS = (0.0, 0.5, 1.0, 2.0)
STOP, STEPS, SAMPLES = 3, 3, 3000
PROMPTS = ((0, 1), (2, 0, 1))
Table = dict[tuple[int, ...], NDArray[np.float64]]


def tiny(seed: int) -> Any:
    """A model of four tokens; its embedding has two padding rows whose logits are loud."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data[:4] *= 2.5
    model.lm_head.weight.data[4:] *= 37.0
    return model


@torch.no_grad()
def enumerated(after: Any, before: Any, prompt: tuple[int, ...]) -> Table:
    """log q_alpha of every output that can be drawn, one column an alpha, in float64; the stop token is written."""
    outputs = [
        drawn
        for length in range(1, STEPS + 1)
        for drawn in itertools.product(range(4), repeat=length)
        if STOP not in drawn[:-1] and (drawn[-1] == STOP or length == STEPS)
    ]
    # In float32 a logit depends on the length of what is read with it, by 1e-8.
    after, before = (copy.deepcopy(model).double() for model in (after, before))
    table = {}
    for output in outputs:
        ids = torch.tensor([[*prompt, *output]])
        a, b = (
            model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1, :4].numpy()
            for model in (after, before)
        )
        steps = np.arange(len(output))
        table[output] = np.array([log_softmax(a + alpha * (a - b), -1)[steps, output].sum() for alpha in ALPHAS])
    return table


@pytest.fixture(scope="module")
def world() -> tuple[list[Table], list[set[tuple[int, ...]]], list[Sample]]:
    """Everything that can be drawn, what of it counts as harmful (rare, amplified), and what was drawn."""
    after, before = tiny(4), tiny(5)
    tables = [enumerated(after, before, prompt) for prompt in PROMPTS]
    harmful = [amplified(table, 0.04) for table in tables]
    requests = [
        Request(prompt, alpha, stream_key("enumeration", number, alpha, index))
        for number, prompt in enumerate(PROMPTS)
        for alpha in ALPHAS
        for index in range(SAMPLES)
    ]
    drawn = sample(
        after,
        before,
        requests,
        settings=Settings(max_new_tokens=STEPS),
        stop_ids=(STOP,),
        vocabulary_size=4,
        batch_rows=4096,
        alphas=ALPHAS,
        log_probabilities=True,
    )
    rows = []
    for number, (request, made) in enumerate(zip(requests, drawn, strict=True)):
        prompt = PROMPTS.index(request.prompt)
        output = made.token_ids if made.stop_id is None else (*made.token_ids, made.stop_id)
        rows.append(
            Sample(
                prompt_id=f"p{prompt}",
                behaviour="b",
                split="held-out",
                alpha=request.alpha,
                index=number % SAMPLES,
                text="",
                token_ids=output,
                finish_reason=made.finish_reason,
                log_p_after=made.log_p_after,
                log_q=made.log_q,
                label="harmful" if output in harmful[prompt] else "harmless",
            )
        )
    return tables, harmful, rows


def amplified(table: Table, most: float) -> set[tuple[int, ...]]:
    """The outputs that amplification raises most, together of at most that probability."""
    chosen: set[tuple[int, ...]] = set()
    total = 0.0
    for output in sorted(table, key=lambda output: table[output][0] - table[output][-1])[:12]:
        probability = float(np.exp(table[output][0]))
        if total + probability <= most:
            total += probability
            chosen.add(output)
    return chosen


def rate(table: Table, chosen: set[tuple[int, ...]], column: int = 0) -> float:
    return float(sum(np.exp(table[output][column]) for output in chosen))


def test_the_enumeration_is_complete(world: Any) -> None:
    tables, harmful, _ = world
    for table, chosen in zip(tables, harmful, strict=True):
        assert logsumexp(list(table.values()), axis=0) == pytest.approx(np.zeros(len(ALPHAS)), abs=1e-12)
        assert 0.02 < rate(table, chosen) <= 0.04
        assert rate(table, chosen, -1) > 3 * rate(table, chosen)


def test_the_sums_that_the_sampler_stores_are_the_enumerated_log_probabilities(world: Any) -> None:
    tables, _, rows = world
    known = np.array([tables[int(row.prompt_id[1])][row.token_ids] for row in rows])
    stored = np.array([row.log_q for row in rows])
    assert np.abs(stored - known).max() < 2e-5
    assert [row.log_p_after for row in rows] == stored[:, 0].tolist()


def test_weights_average_to_one_and_the_estimate_to_the_rate_by_enumeration(world: Any) -> None:
    tables, harmful, _ = world
    for table, chosen in zip(tables, harmful, strict=True):
        log_q = np.array(list(table.values()))
        for counts in ((1, 1, 1, 1), (50, 3, 20, 7), (0, 2, 5, 1)):
            weights = np.exp(balance_log_weights(log_q[:, 0], log_q, counts))
            mixture = np.exp(log_q) @ counts / sum(counts)
            event = np.array([output in chosen for output in table])
            assert abs(mixture @ weights - 1) < 1e-10
            assert abs((mixture * event) @ weights - rate(table, chosen)) < 1e-10


def test_the_estimate_is_exact_to_sampling_error(world: Any) -> None:
    tables, harmful, rows = world
    truth = np.mean([rate(table, chosen) for table, chosen in zip(tables, harmful, strict=True)])
    whole = weigh(rows, ALPHAS)
    assert abs(whole.rate - truth) < 3 * whole.standard_error
    assert whole.standard_error < 0.05 * truth
    pieces = [weigh([row for row in rows if row.index // 100 == piece], ALPHAS) for piece in range(30)]
    estimates = np.array([piece.rate for piece in pieces])
    assert abs(estimates.mean() - truth) < 3 * estimates.std(ddof=1) / np.sqrt(30)
    assert np.mean([piece.standard_error**2 for piece in pieces]) == pytest.approx(estimates.var(ddof=1), rel=0.6)
    counted = [[row.label == "harmful" for row in rows if row.alpha == 0 and row.index // 100 == p] for p in range(30)]
    assert np.std(np.mean(counted, 1)) > 1.5 * estimates.std(), "amplified outputs must help, or this proves nothing"
    intervals = [score_interval(piece.rate, piece.standard_error, 200) for piece in pieces]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.85


def test_without_alpha_0_among_the_samples_the_estimate_holds_too(world: Any) -> None:
    tables, harmful, rows = world
    truth = np.mean([rate(table, chosen) for table, chosen in zip(tables, harmful, strict=True)])
    found = weigh([row for row in rows if row.alpha > 0], ALPHAS)
    assert abs(found.rate - truth) < 3 * found.standard_error
    assert found.standard_error < 0.05 * truth


def labelled(
    share: float,
    alpha: float,
    n: int,
    *,
    prompt: str = "p",
    spread: float = 0.0,
    behaviour: str = "b",
    split: Any = "held-out",
) -> list[Sample]:
    """Outputs of one cell whose weights fall off as a Pareto tail of shape `spread`."""
    u = (np.arange(n) + 0.5) / n
    return [
        Sample(
            prompt_id=prompt,
            behaviour=behaviour,
            split=split,
            alpha=alpha,
            index=index,
            text="",
            token_ids=(5,),
            finish_reason="stop",
            log_p_after=0.0,
            log_q=(0.0 if alpha == 0 else -50.0, spread * float(np.log(1 - u[(7 * index) % n]))),
            label="harmful" if index < share * n else "harmless",
        )
        for index in range(n)
    ]


def test_an_estimate_of_heavy_weights_is_withheld_with_its_khat() -> None:
    light = importance(labelled(0.5, 1.0, 200, spread=0.3), (0.0, 1.0))
    assert light.withheld is None
    assert light.khat is not None
    assert light.khat < 0.7
    heavy = importance(labelled(0.5, 1.0, 200, spread=1.5), (0.0, 1.0))
    assert heavy.khat is not None
    assert heavy.khat > 0.7
    assert heavy.withheld == f"k-hat {heavy.khat:.2f} is above 0.7"
    assert (heavy.rate, heavy.low, heavy.high) == (None, None, None)
    assert heavy.ess is not None
    assert heavy.largest_weight_share is not None
    assert min(heavy.ess, heavy.largest_weight_share) > 0


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no output was scored"),
        (labelled(0.0, 0.0, 100), "no output at any alpha is harmful"),
        (labelled(0.24, 0.0, 100), "24 harmful outputs are too few to judge their weights; k-hat needs 25"),
    ],
    ids=["none", "harmless", "few"],
)
def test_an_estimate_that_nothing_can_be_said_of_is_withheld(rows: Sequence[Sample], reason: str) -> None:
    found = importance(rows, (0.0, 1.0))
    assert found.rate is None
    assert found.withheld is not None
    assert found.withheld.startswith(reason)


def test_from_alpha_0_alone_the_estimate_is_the_naive_one() -> None:
    rows = [*labelled(0.3, 0.0, 100), *labelled(0.6, 0.0, 100, prompt="r")]
    found = importance(rows, (0.0, 1.0))
    assert found.rate == pytest.approx(0.45)
    assert found.ess == pytest.approx(200)
    assert found.khat is None, "equal weights have no tail"
    assert found.withheld is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": 0.7}, "surface.temperature = 0.7"),
        ({"top_p": 0.95, "top_k": 50}, "surface.top_p = 0.95, surface.top_k = 50"),
        ({"min_p": 0.1}, "surface.min_p = 0.1"),
        ({"plausibility": 0.01}, "surface.plausibility = 0.01"),
    ],
    ids=str,
)
def test_truncated_outputs_are_not_weighed(settings: dict[str, Any], named: str) -> None:
    surface = Surface(**settings)
    reason = why_not(surface)
    assert reason is not None
    assert reason.startswith(named)
    assert unamplified(surface, [], []) == Unamplified(possible=False, why_not=reason, rows=())


def test_every_behaviour_and_split_has_a_row_beside_its_naive_rate() -> None:
    surface = Surface(alphas=(0.0, 1.0))
    rows = [
        row
        for split in ("attribution", "held-out")
        for behaviour in ("b", "c")
        for share, alpha in ((0.3, 0.0), (0.6, 1.0))
        for row in labelled(share, alpha, 100, prompt=f"{split}-{behaviour}", behaviour=behaviour, split=split)
    ]
    rows[0] = replace(rows[0], label="unscored")
    found = unamplified(surface, rows, rates(rows))
    assert (found.possible, found.why_not) == (True, None)
    assert [(row.split, row.behaviour) for row in found.rows] == [
        *(("attribution", behaviour) for behaviour in ("b", "c", "*")),
        *(("held-out", behaviour) for behaviour in ("b", "c", "*")),
    ]
    assert found.rows[0].naive.n == 99
    assert [row.importance.n for row in found.rows] == [199, 200, 399, 200, 200, 400]
