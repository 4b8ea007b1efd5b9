"""What the arms of a patch phase share: the plan, the jobs, and a worker's loaded models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame.errors import PhaseError
from datablame.patch.checks import Asked, encoded_clean
from datablame.study.schema import Study, Training
from datablame.tables import Document, Prompt, Protocol

if TYPE_CHECKING:
    from datablame.models.chat import Encoded, Preference
    from datablame.models.trunk import Trunk


@dataclass(frozen=True)
class Plan:
    """What all jobs share: the fine-tune set in order, the documents by id, what is measured."""

    study: Study
    members: tuple[str, ...]
    documents: Mapping[str, Document]
    prompts: tuple[tuple[Prompt, int], ...]
    """Each prompt with its number of samples."""
    alphas: tuple[float, ...]
    watched: frozenset[str]
    """Documents whose exposure is counted: everything that any arm removes."""
    out: Path
    asked: Asked = field(default_factory=Asked)
    """What the side checks need of every model."""


class Job(NamedTuple):
    """One training: `fillers` maps removed documents to those in their places, `swapped` are pairs turned round."""

    arm: str
    protocol: Protocol
    k: int
    seed: int
    fillers: Mapping[str, str]
    swapped: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The job's name in journals and file names."""
        return f"{self.protocol}-{self.arm}-k{self.k}-s{self.seed}"


@dataclass
class Bench:
    """A worker's loaded models: `trainees` are what each protocol starts from, restored after every job."""

    plan: Plan
    tokenizer: Any
    before: Any
    encoded: "dict[str, Encoded] | dict[str, Preference]"
    trainees: dict[Protocol, Any]
    trunks: "dict[Protocol, Trunk | None]" = field(default_factory=dict)
    """What lies below the adapted blocks, made when a protocol's first job comes."""

    @property
    def pairs(self) -> bool:
        """Whether the documents are preference pairs."""
        return any(document.rejected for document in self.plan.documents.values())


def set_up(plan: Plan) -> Bench:
    """Load before and what each protocol starts from; after is loaded only where `continue` trains on top of it."""
    from datablame.models.chat import answers, encode_document, encode_preference
    from datablame.models.load import load_model
    from datablame.models.pair import study_tokenizer

    study = plan.study
    assert study.models is not None
    tokenizer = study_tokenizer(study)
    before = load_model(study.models.before, device=study.models.device, field="models.before")
    trainees = {protocol: _trainee(study, protocol, before) for protocol in study.patch.protocols}
    bench = Bench(plan, tokenizer, before, {}, trainees)
    encoded: dict[str, Any] = {}
    for doc_id, document in plan.documents.items():
        encode = encode_preference if bench.pairs else encode_document
        example = encode(tokenizer, document, study.attribute.max_tokens)
        if example is None:
            raise PhaseError(
                f"document {doc_id} has no response left in attribute.max_tokens = {study.attribute.max_tokens} "
                "tokens; raise it and run again"
            )
        encoded[doc_id] = example
    clean = encoded_clean(tokenizer, study, plan.asked)
    _check_lengths(study, [answer for example in encoded.values() for answer in answers(example)] + clean)
    bench.encoded = encoded
    return bench


def _trainee(study: Study, protocol: Protocol, before: Any) -> Any:
    """What a protocol trains. LoRA from before shares its weights: the adapter is in one tree of modules only.

    All weights are trained in float32 and in a copy of their own, since training changes them.
    """
    import torch

    from datablame.models.adapters import twin
    from datablame.models.load import load_model

    assert study.models is not None
    lora = study.patch.training_of(protocol).method == "lora"
    if protocol == "retrain" and lora:
        return twin(before)
    field = "models.before" if protocol == "retrain" else "models.after"
    reference = study.models.before if protocol == "retrain" else study.models.after
    return load_model(reference, device=study.models.device, dtype=None if lora else torch.float32, field=field)


def _check_lengths(study: Study, encoded: "Sequence[Encoded]") -> None:
    from datablame.models.preflight import check_documents

    assert study.models is not None
    lengths = [len(answer.ids) for answer in encoded]
    check_documents(study.models.before, "models.before", lengths, study.attribute.max_tokens)


def trunk_of(bench: Bench, protocol: Protocol, training: Training) -> "Trunk | None":
    """The blocks that no adapter touches, run once over all documents of the plan; None where all are trained.

    Preference pairs run the whole model.
    """
    from datablame.models.trunk import trunk_below

    if training.method == "full" or training.layers is None or bench.pairs:
        return None
    if protocol not in bench.trunks:
        model = bench.trainees[protocol]
        documents: list[Any] = list(bench.encoded.values())
        bench.trunks[protocol] = trunk_below(model, min(training.layers), documents)
    return bench.trunks[protocol]
