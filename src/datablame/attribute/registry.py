"""Attribution methods and the evidence that they judge by: both plug in, ours and others' alike.

A method turns evidence, which it asks for by its type, into one score for each document and behaviour. A provider
yields evidence of one or several types.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from datablame.config.attribute import Attribute
from datablame.config.schema import Behaviour
from datablame.engine.files import packaged_yaml
from datablame.engine.phase import Work
from datablame.engine.registry import Registry
from datablame.errors import RequestError
from datablame.models.chat import Encoded, encode_prompt
from datablame.tables import EVERY, Finding, LabelName, Look, Pool, Query, look_of
from datablame.world import World

if TYPE_CHECKING:
    from datablame.attribute.loop import WorkerState

E = TypeVar("E")


@dataclass(frozen=True)
class Evidence:
    """What methods judge by: the scored documents, the traced behaviours, and what providers found, by its type."""

    seed: int
    ids: Sequence[str]
    """Of the documents that are scored."""
    behaviours: Sequence[Behaviour]
    queries: Sequence[Query]
    by_type: Mapping[type, Any]
    findings: list[Finding] = field(default_factory=list)
    """What the method says of itself, beside its scores."""
    reasons: dict[str, str] = field(default_factory=dict)
    """By behaviour why the method gives its documents no score."""

    def __getitem__(self, kind: type[E]) -> E:
        """The evidence of that type, which the method must have asked for."""
        evidence: E = self.by_type[kind]
        return evidence

    def report(self, name: str, value: float | str, behaviour: str = EVERY) -> None:
        """State what a reader of the scores should know: an accuracy, a damping, the layer that was chosen."""
        self.findings.append(Finding(behaviour, name, value if isinstance(value, str) else f"{value:.4g}"))

    def no_score(self, behaviour: Behaviour, reason: str) -> NDArray[np.float64]:
        """A column without any score, with the reason, for a behaviour that the method cannot judge."""
        self.reasons[behaviour.id] = reason
        return np.full(len(self.ids), np.nan)

    def queries_of(self, behaviour: Behaviour) -> list[int]:
        """Which of the queries show the behaviour."""
        return [index for index, query in enumerate(self.queries) if query.behaviour == behaviour.id]

    def for_every_behaviour(self, column: NDArray[np.float64]) -> NDArray[np.float64]:
        """A number for each document as its score for all behaviours."""
        return np.repeat(column[:, None], len(self.behaviours), axis=1)

    def mean_cosines(self, documents: NDArray[np.float64], queries: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cosines with the behaviour's queries, averaged over them; a row of zeros has cosine 0 with every other."""
        return unit_rows(documents) @ self.mean_over_queries(unit_rows(queries))

    def mean_over_queries(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean row over each behaviour's queries; from shape (queries, n) to (n, behaviours)."""
        return np.stack([rows[self.queries_of(behaviour)].mean(0) for behaviour in self.behaviours], 1)


def unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row over its norm, zeros where that is none."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return units


class Votes(NamedTuple):
    """Evidence that is made of the scores of the study's other methods, those that are no control."""

    scores: Mapping[str, NDArray[np.float64]]
    """By method, of shape (documents, behaviours); NaN where it gave no score."""
    eligible: NDArray[np.bool_]
    """Which documents every voter ranks for each behaviour: all, or where one ranks candidates only, those."""


class PrecomputedScores(dict[str, NDArray[np.float64]]):
    """Evidence of the study's own files, `attribute.scores`, as the scores of `Votes`."""


Cost = Literal["none", "words", "encoder", "forward", "backward", "curvature", "training", "judge"]
"""What is done to each document: nothing, its words are read, an encoder or the checkpoint sees it, it is
differentiated, that twice or more for the curvature, that at several checkpoints or after a training, or it is asked
about."""
ScoreFunction = Callable[[Evidence], NDArray[np.float64]]
"""Scores of shape (documents, behaviours), higher is more responsible; NaN where there is none."""


@dataclass(frozen=True)
class Method:
    """One way to hold documents responsible."""

    name: str
    label: str
    """What figures and tables call it."""
    description: str
    """One sentence on what is compared with what."""
    cost: Cost
    """The dearest work that it needs beyond sampling the outputs."""
    reference: str
    """Where it comes from."""
    needs: tuple[type, ...]
    score: ScoreFunction
    look: Look
    whole_pool: bool = True
    """Whether it scores every document where no prefilter is set; an expensive one scores the candidates only."""
    standin: bool = False
    """Whether it stands in for a method that cannot run here."""
    control: bool = False
    """Whether it is what a method has to beat: it does not look at the behaviour, or at words alone."""
    exact: bool = False
    """Whether its scores are no sums of floats, and rank as they are: hashes, ranks, a user's file."""
    missing: float | None = None
    """What ranks for a document without a score; None: it is not ranked. In no case is it a vote."""
    confounds: tuple[str, ...] = ()
    """Methods that may owe what they find to what this control measures; it is then in no family of tests."""
    variant: Callable[[World], Mapping[str, Any]] = lambda world: {}
    """Fields that are other in a world."""

    def in_world(self, world: World) -> "Method":
        """The method as this study runs it."""
        return replace(self, **self.variant(world))


_PACKAGE = "datablame.attribute.methods"
METHODS: Registry[Method] = Registry("method", "attribute.methods", _PACKAGE, "datablame.methods")
_OURS = {
    name: {**about, "look": Look(*about["look"]), "confounds": tuple(about.get("confounds", ()))}
    for name, about in packaged_yaml(_PACKAGE, "methods.yaml").items()
}


def method(
    name: str, *, needs: tuple[type, ...] = (), look: Look | None = None, **about: Any
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register a function as an attribution method; `about` are other fields of `Method`, a label and description.

    Of our own methods they stand in methods.yaml.
    """

    def register(score: ScoreFunction) -> ScoreFunction:
        fields = {"cost": "none", "reference": "", "look": look or look_of(name), **_OURS.get(name, {}), **about}
        METHODS.add(name, Method(name=name, needs=needs, score=score, **fields))
        return score

    return register


def chosen(settings: Attribute) -> list[Method]:
    """The methods of a study, the user's own files among them; who joins votes ranks what all voters rank.

    Raises RequestError where one of them is not known.
    """
    files = settings.scores
    methods = [_precomputed(name, files[name]) if name in files else METHODS.named(name) for name in settings.methods]
    voters = [method for method in methods if is_voter(method)]
    whole, names = all(voter.whole_pool for voter in voters), ", ".join(voter.name for voter in voters)
    return [
        replace(method, whole_pool=whole, description=f"{method.description.rstrip('.')}: {names}.")
        if Votes in method.needs
        else method
        for method in methods
    ]


def _precomputed(name: str, path: str) -> Method:
    """A file's scores as a method's, as they stand there."""

    def score(evidence: Evidence) -> NDArray[np.float64]:
        return evidence[PrecomputedScores][name]

    description = f"Scores brought by the user: {PurePath(path).name}."
    about: dict[str, Any] = {"label": f"{name} (brought)", "description": description, "cost": "none", "reference": ""}
    return Method(name, needs=(PrecomputedScores,), score=score, look=look_of(name), exact=True, **about)


def is_voter(method: Method) -> bool:
    """Whether it has a vote where methods are joined."""
    return not method.control and Votes not in method.needs


def costed(methods: Sequence[Method], kinds: Iterable[type]) -> list[str]:
    """The methods that pay for evidence of these types: those that need it, and those that join votes made of it."""
    needing = {method.name: is_voter(method) for method in methods if not {*kinds}.isdisjoint(method.needs)}
    voted = any(needing.values())
    return [method.name for method in methods if method.name in needing or (voted and Votes in method.needs)]


def described() -> list[dict[str, Any]]:
    """Name, label, description, cost, reference, needs and flags of all, as `datablame methods` prints them."""
    fields = ("name", "label", "description", "cost", "reference", "whole_pool", "standin", "control")
    methods = [each for _, each in sorted(METHODS.all().items())]
    return [{**{f: getattr(m, f) for f in fields}, "needs": [need.__name__ for need in m.needs]} for m in methods]


@dataclass(frozen=True)
class Inquiry:
    """What evidence is sought about."""

    world: World
    work: Work
    behaviours: Sequence[Behaviour]
    queries: Sequence[Query]
    """The harmful outputs that are traced."""
    harmless: Sequence[Query]
    """Outputs that the queries are set against."""
    words: Mapping[type, NDArray[np.float64]]
    """BM25 scores of shape (queries, documents of the pool), by the evidence that is made of them."""
    scored: NDArray[np.int64]
    """Rows of the pool that are scored; they rise."""
    candidates: Mapping[str, NDArray[np.int64]]
    """Rows of the pool by behaviour."""
    needs: Mapping[type, Pool]
    """The types of evidence that are wanted, each for the documents of that pool."""
    labelled: Mapping[LabelName, Sequence[Query]] = field(default_factory=dict)
    """Outputs to attribution prompts by label, the traced behaviours' and others', far more than `queries` holds."""
    amplified: Sequence[Query] = ()
    """Outputs that are grouped without a look at their labels; none where groups are not looked for."""

    @cached_property
    def ids(self) -> list[str]:
        """Of the documents that are scored."""
        return [self.world.pool.ids[row] for row in self.scored.tolist()]

    def rows(self, *kinds: type) -> NDArray[np.int64]:
        """The rows of the pool for which evidence of one of the types is wanted."""
        pools = {self.needs[kind] for kind in kinds if kind in self.needs}
        return self.scored if "whole" in pools else union(self.candidates) if pools else self.scored[:0]

    def spread(self, rows: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
        """Values of some rows at those of all scored documents, zeros where there are none."""
        if len(rows) == len(self.scored):
            return values
        spread = np.zeros((len(self.scored), *values.shape[1:]), values.dtype)
        spread[np.searchsorted(self.scored, rows)] = values
        return spread

    def encoded(self, outputs: Sequence[Query]) -> list[Encoded]:
        """Queries or harmless outputs as the tokens that they were drawn with."""
        from datablame.models.pair import agreed_tokens

        tokenizer = agreed_tokens(self.world.models).tokenizer
        prompts = {each.prompt: encode_prompt(tokenizer, each.prompt) for each in outputs}
        return [Encoded([*(prompt := prompts[each.prompt]), *each.token_ids], len(prompt)) for each in outputs]

    def encoded_by_behaviour(self) -> list[list[Encoded]]:
        """The queries as tokens, those of each behaviour together."""
        encoded = list(zip(self.queries, self.encoded(self.queries), strict=True))
        return [[ids for query, ids in encoded if query.behaviour == each.id] for each in self.behaviours]


def union(candidates: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """The rows of every behaviour's candidates; they rise."""
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *candidates.values()]))


class WorkItem(NamedTuple):
    """One piece of work, which a resumed run does not do again."""

    work: "Callable[[WorkerState], Any]"
    """Gives JSON; a module's function with arguments bound by `functools.partial`, since workers get it pickled."""
    serves: tuple[type, ...]
    """The types of evidence that it makes; its seconds count for the methods that need one of them."""


Collecting = Generator[Mapping[str, WorkItem], Mapping[str, Any], Mapping[type, Any]]
"""Yields stages of items by their keys, gets what each item gave, and returns evidence by its type."""
Collect = Callable[[Inquiry], Any]
"""Gives `Collecting`, stages of work items, or the evidence at once where this process makes it without items."""


class Passes(NamedTuple):
    """How often each document passes through a checkpoint, at most."""

    forward: int = 0
    """Without a way back."""
    backward: int = 0
    """Forward and back, for its gradient."""


def once_forward(world: World, kinds: Collection[type]) -> Passes:
    """One forward pass, whatever is wanted of it."""
    return Passes(forward=1)


def once_backward(world: World, kinds: Collection[type]) -> Passes:
    """One pass forward and back, whatever is wanted of it."""
    return Passes(backward=1)


class EvidenceProvider(NamedTuple):
    """What makes evidence: how it cuts the pool into items, the work on one, how they are gathered."""

    name: str
    """Keys of its items begin with it."""
    yields: tuple[type, ...]
    collect: Collect
    check: Callable[[World, Work], object]
    """Refuses a world in which the provider cannot work, before anything is read."""
    per_document: bool
    """Whether it works on documents one by one, so that `plan` counts them."""
    passes: Callable[[World, Collection[type]], Passes]
    """Over the documents, for these of its types of evidence."""


PROVIDERS: Registry[EvidenceProvider] = Registry(
    "evidence provider", "evidence", "datablame.attribute.evidence", "datablame.evidence"
)


def provider(
    name: str,
    *yields: type,
    check: Callable[..., object] = lambda world, work: None,
    per_document: bool = True,
    passes: Callable[[World, Collection[type]], Passes] = once_forward,
) -> Callable[[Collect], Collect]:
    """Register a function that collects evidence of these types."""

    def register(collect: Collect) -> Collect:
        PROVIDERS.add(name, EvidenceProvider(name, yields, collect, check, per_document, passes))
        return collect

    return register


def providers_of(kinds: Collection[type]) -> list[EvidenceProvider]:
    """Who yields evidence of these types, those first that read no documents; RequestError where nobody yields one."""
    known = PROVIDERS.all().values()
    for kind in kinds:
        if not any(kind in provider.yields for provider in known):
            broken = "".join(f"; {problem}" for problem in (*METHODS.problems, *PROVIDERS.problems))
            raise RequestError(f"attribute.methods: no evidence provider yields {kind.__name__}{broken}")
    needed = [provider for provider in known if set(provider.yields) & set(kinds)]
    return sorted(needed, key=lambda provider: (provider.per_document, provider.name))
