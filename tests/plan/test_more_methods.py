"""What the methods beyond the specification's add to a plan."""

from collections.abc import Sequence

from datablame.config.file import load_study
from datablame.plan.counts import counted
from datablame.plan.memory import CARD, estimates
from datablame.plan.subject import subject_of

ARMS = "patch.arms=[after, baseline, random, gradient]"


def planned(*methods: str, more: Sequence[str] = ()) -> tuple[int | None, int | None, dict[str, int]]:
    study = load_study("olmo2-1b-sound", [f"attribute.methods=[gradient, {', '.join(methods)}]", ARMS, *more])
    subject = subject_of(study, on_gpu=True)
    counts = counted(subject)
    memory = estimates(subject, counts, CARD)
    assert memory is not None
    attribution = counts.attribution
    return attribution.gradient_documents, attribution.activation_documents, dict(memory["attribute"].parts)


def test_a_method_costs_what_it_adds() -> None:
    gradients, activations, plain = planned("bm25")
    assert planned("bm25", "gradient-dot") == (gradients, activations, plain)

    same, _, both = planned("gradient-diff")
    assert same == gradients == 50_000
    assert both["weights of the other checkpoint"] == plain["weights"]
    assert both["gradient of one query"] == 3 * plain["gradient of one query"]
    assert {name for name in both if "directions" in name} <= {*plain, "directions of one layer"}

    # Mean hidden states come out of the pass for the gradients.
    assert activations == planned("activation")[1] == 0
    _, once, contrasted = planned("activation", "activation-diff")
    assert once == 50_000
    assert contrasted == plain
    _, twice, _ = planned("activation-diff", "activation-last", "activation-response")
    assert twice == 2 * 50_000


def test_curvature_costs_passes_and_its_factors() -> None:
    gradients, activations, plain = planned("bm25")
    assert gradients is not None
    of_fisher, same, diagonal = planned("fisher")
    of_ekfac, _, kronecker = planned("ek-fac", "trackstar")
    assert (of_fisher, of_ekfac, same) == (3 * gradients, 4 * gradients, activations)
    assert kronecker["curvature"] > diagonal["curvature"] > 0
    assert "curvature" not in plain


def test_what_looks_along_the_training_passes_documents_at_every_checkpoint() -> None:
    between = ["allenai/OLMo-2-0425-1B-SFT"] * 3
    checkpoints = ", ".join(f"{{path: {path}, learning_rate: 1.0e-5}}" for path in between)
    of_tracin, forward, memory = planned("tracin", more=[f"models.checkpoints=[{checkpoints}]"])
    assert (of_tracin, forward) == ((1 + 5) * 50_000, 0)
    assert "directions of the behaviours" in memory or "directions of one layer" in memory
    assert planned("less")[0] == (1 + 4 + 1) * 50_000
    assert planned("adam")[0] == 2 * 50_000
