"""What the methods beyond the specification's add to a plan."""

from datablame.config.file import load_study
from datablame.plan.counts import counted
from datablame.plan.memory import CARD, estimates
from datablame.plan.subject import subject_of

ARMS = "patch.arms=[after, baseline, random, gradient]"


def planned(*methods: str) -> tuple[int | None, int | None, dict[str, int]]:
    study = load_study("olmo2-1b-sound", [f"attribute.methods=[gradient, {', '.join(methods)}]", ARMS])
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

    assert activations is not None
    _, twice, contrasted = planned("activation-diff")
    assert twice == activations + 50_000
    assert contrasted == plain
    _, thrice, _ = planned("activation", "activation-diff")
    assert thrice == 2 * 50_000


def test_curvature_costs_passes_and_its_factors() -> None:
    gradients, activations, plain = planned("bm25")
    assert gradients is not None
    of_fisher, same, diagonal = planned("fisher")
    of_ekfac, _, kronecker = planned("ek-fac", "trackstar")
    assert (of_fisher, of_ekfac, same) == (3 * gradients, 4 * gradients, activations)
    assert kronecker["curvature"] > diagonal["curvature"] > 0
    assert "curvature" not in plain


def test_every_checkpoint_of_a_training_and_a_warm_up_are_passes_of_gradients() -> None:
    plain = counted(subject_of(load_study("leaderboard", ["attribute.methods=[gradient, activation]"]), on_gpu=False))
    assert plain.attribution.gradient_documents == 2000
    for name, passes in (("adam", 1), ("tracin", 5), ("less", 5)):
        study = load_study("leaderboard", [f"attribute.methods=[gradient, activation, {name}]"])
        reading = counted(subject_of(study, on_gpu=False)).attribution
        assert reading.gradient_documents == (1 + passes) * 2000
        assert reading.activation_documents == plain.attribution.activation_documents
