"""What the API will be asked and what that costs, by the price table that the run itself is charged by."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from datablame.attribute.methods.llm_judge import Judgements
from datablame.attribute.registry import chosen
from datablame.config.schema import Study
from datablame.judge.choice import ATTRIBUTION, CLASSIFICATION, Price, Usage, cost_usd, decide, known_prices
from datablame.plan.counts import Counts
from datablame.plan.subject import Subject


class Asked(NamedTuple):
    """One kind of call; `usd` is None for a model whose price is not known."""

    what: str
    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None


class Calls(NamedTuple):
    """What Claude is asked, or would be with a key; `will_ask` says whether the study asks in this shell."""

    asked: tuple[Asked, ...]
    will_ask: bool
    why: str
    cautions: tuple[str, ...] = ()

    @property
    def usd(self) -> float | None:
        """The sum, None where a price is not known."""
        prices = [each.usd for each in self.asked]
        return None if None in prices else sum(price for price in prices if price is not None)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "will_ask": self.will_ask,
            "why": self.why,
            "calls": [each._asdict() for each in self.asked],
            "usd": self.usd if self.will_ask else 0.0,
            "usd_with_a_key": self.usd,
        }


def calls_of(subject: Subject, counts: Counts, *, has_key: bool) -> Calls:
    """At most so many calls: an output or document that was asked about before comes from the cache."""
    study, judge = subject.study, subject.study.judge
    # What a key would make of it is of interest without one too.
    choice = decide(study, None, True)
    labels = choice.classifier == "claude"
    judges = choice.attribution == "claude" and any(Judgements in method.needs for method in chosen(study.attribute))
    if not labels and not judges:
        return Calls((), False, f"no calls; {choice.classifier} label the outputs")
    prices = known_prices(study.judge)
    asked = []
    if labels:
        outputs = counts.scan.outputs + counts.surface.outputs + counts.patch.outputs
        asked.append(_asked(study, "outputs labelled", judge.model, outputs, CLASSIFICATION, prices))
    if judges:
        attribution = counts.attribution
        documents = attribution.behaviours * attribution.candidates * judge.repeats
        asked.append(_asked(study, "documents scored", judge.attribution_model, documents, ATTRIBUTION, prices))
    forced = "claude" in (judge.classifier, judge.attribution)
    if has_key:
        why = "ANTHROPIC_API_KEY is set; at most"
    elif forced:
        why = "the study asks for Claude, but ANTHROPIC_API_KEY is not set; at most"
    else:
        why = "no calls, for ANTHROPIC_API_KEY is not set: keywords label and judge; with a key at most"
    return Calls(tuple(asked), has_key, why, tuple(_cautions(asked, prices, forced=forced, has_key=has_key)))


def _asked(study: Study, what: str, model: str, calls: int, each: Usage, prices: Mapping[str, Price]) -> Asked:
    usage = Usage(calls * each.input_tokens, calls * each.output_tokens)
    usd = cost_usd(model, usage, prices, batch=study.judge.batches) if model in prices else None
    return Asked(what, model, calls, usage.input_tokens, usage.output_tokens, usd)


def _cautions(asked: list[Asked], prices: Mapping[str, Price], *, forced: bool, has_key: bool) -> list[str]:
    found = []
    if forced and not has_key:
        found.append("judge: claude needs ANTHROPIC_API_KEY in the environment; set it, or choose auto")
    for model in dict.fromkeys(each.model for each in asked):
        if model not in prices:
            found.append(f"judge: the price of {model} is not known; give it in judge.prices to see and limit the cost")
        elif prices[model].no_thinking is None:
            found.append(f"judge: {model} thinks before it answers, which costs more than the estimate says")
    return found
