"""A linear probe that tells harmful from safe outputs by their states, and how well it does on outputs held out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]

_FOLDS = 3
_STANDARD_ERRORS = 2.33
"""One-sided 1 %: probes of one cross-validation err together, and with 1.645 one in nine shuffled labellings passes."""


class Probe(NamedTuple):
    """A direction in the space of states and what is added to the product with it."""

    direction: NDArray[np.float64]
    bias: float

    def decision(self, rows: Rows) -> NDArray[np.float64]:
        """The log-odds of harmful, one a row."""
        return rows @ self.direction + self.bias


class Separation(NamedTuple):
    """How well harmful outputs are told from safe ones by probes that did not see them."""

    auc: float
    """The share of pairs of a harmful and a safe output that are in the right order, ties counting one half."""
    low: float
    """The AUC less 2.33 of its standard errors where nothing can be told apart (Mann and Whitney 1947)."""
    accuracy: float
    """The mean of the shares of harmful and of safe outputs on their own side."""
    by_prompt: bool
    """Whether all outputs to a prompt were held out together, and only outputs to one prompt compared."""

    @property
    def found(self) -> bool:
        """Whether they are told apart better than chance does it; about 5 % of shuffled labellings are."""
        return self.low > 0.5


def fitted(harmful: Rows, safe: Rows) -> Probe:
    """Logistic regression with an L2 penalty, C = 1, both classes weighing the same.

    States are centred and divided by their root mean square norm, one number for all dimensions: a dimension in which
    outputs hardly differ is not blown up for documents in which it does.
    """
    from sklearn.linear_model import LogisticRegression

    states = np.concatenate([harmful, safe])
    centre = states.mean(0)
    scale = np.sqrt(np.square(states - centre).sum(1).mean()) or 1.0
    model = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=10_000)
    model.fit((states - centre) / scale, np.arange(len(states)) < len(harmful))
    direction = model.coef_[0] / scale
    return Probe(direction, float(model.intercept_[0] - centre @ direction))


def separation(
    harmful: Rows, safe: Rows, harmful_prompts: Sequence[str], safe_prompts: Sequence[str]
) -> Separation | None:
    """Cross-validation in at most 3 folds; values are compared within one fold only, for each has a probe of its own.

    Where two prompts or more have outputs of both kinds, folds hold whole prompts and a pair is two answers to one
    prompt, so that what is told apart is how the model answers and not what it was asked. Else folds hold outputs.
    None where one kind has fewer than two outputs, so that none can be held out.
    """
    fewest = min(len(harmful), len(safe))
    if fewest < 2:
        return None
    both = sorted({*harmful_prompts} & {*safe_prompts})
    if by_prompt := len(both) > 1:
        n = min(_FOLDS, len(both))
        fold_of = {prompt: number % n for number, prompt in enumerate(both)}
        folds = [[fold_of.get(prompt, -1) for prompt in prompts] for prompts in (harmful_prompts, safe_prompts)]
        groups = [np.array(prompts) for prompts in (harmful_prompts, safe_prompts)]
    else:
        n = min(_FOLDS, fewest)
        folds = [[number % n for number in range(len(rows))] for rows in (harmful, safe)]
        groups = [np.array(of_kind) for of_kind in folds]
    right, pairs, variance, hits = 0.0, 0, 0.0, [list[bool](), list[bool]()]
    for fold in range(n):
        held_out = [np.array(of_kind) == fold for of_kind in folds]
        probe = fitted(harmful[~held_out[0]], safe[~held_out[1]])
        values = [probe.decision(rows) for rows in (harmful, safe)]
        hits[0] += (values[0][held_out[0]] > 0).tolist()
        hits[1] += (values[1][held_out[1]] < 0).tolist()
        for group in np.unique(groups[0][held_out[0]]):
            ours, theirs = (each[of_kind == group] for each, of_kind in zip(values, groups, strict=True))
            differences, n_pairs = ours[:, None] - theirs, len(ours) * len(theirs)
            right += float((differences > 0).sum() + (differences == 0).sum() / 2)
            pairs += n_pairs
            variance += n_pairs * (len(ours) + len(theirs) + 1) / 12
    auc = right / pairs
    accuracy = float(np.mean([np.mean(of_kind) for of_kind in hits]))
    return Separation(auc, auc - _STANDARD_ERRORS * variance**0.5 / pairs, accuracy, by_prompt)
