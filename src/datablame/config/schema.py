"""The study as frozen models: every key, its default, its meaning, and the combinations that cannot be."""

import datetime
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from datablame.config.attribute import Attribute, Prefilter
from datablame.config.checks import Count, Samples, Section, Seed, Share, impossible
from datablame.config.execution import Execution
from datablame.config.judge import Judge
from datablame.config.organism import Organism
from datablame.config.report import Figures, Report, Track
from datablame.tables import Protocol

Alpha = Annotated[float, Field(ge=-1000, le=1000)]
"""Beyond it nothing is left of the after model's own logits in 32 bits."""

Column = Literal[
    "id",
    "source",
    "system",
    "tools",
    "messages",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "instruction",
    "input",
    "output",
    "history",
    "text",
]
"""What a column of the pool may hold."""
MessageRole = Literal["system", "developer", "user", "assistant", "tool", "function", "environment", "ipython"]
"""Roles as chat templates name them."""


PRESENTATION = ("report", "figures", "track")
"""Sections on which no number depends."""


class ModelRef(Section):
    """Where a checkpoint comes from."""

    path: str
    """Hub id, local folder as `save_pretrained` writes it (a LoRA adapter's too), or GGUF file."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    subfolder: str | None = None
    """Folder inside the hub model or local folder that holds the checkpoint."""
    gguf_file: str | None = None
    """Name of a GGUF file inside `path`; it is dequantised to float32 once and kept in the cache."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the weights; logits are float32 always. `auto`: float32 on a CPU, else the checkpoint's, if it can be."""
    device_map: str | None = None
    """Where accelerate puts the parts of a model (`auto`, `cuda:1`); none: all of it on `models.device`."""
    attn_implementation: str | None = None
    """Attention kernel of transformers (`sdpa`, `eager`, `flash_attention_2`); none: its own choice."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class IntermediateCheckpoint(ModelRef):
    """A checkpoint that the training between before and after passed."""

    learning_rate: Share
    """The optimiser's learning rate there, by which its gradients weigh."""


class Models(Section):
    """The two checkpoints whose difference is amplified, and what else the training between them left."""

    before: ModelRef
    """The checkpoint before the training stage under suspicion."""
    after: ModelRef
    """The checkpoint after it; a LoRA adapter on `before` shares its weights."""
    checkpoints: tuple[IntermediateCheckpoint, ...] = ()
    """Of `tracin`: checkpoints between before and after in the order of training; before weighs as the first of them,
    after as the last."""
    optimizer: str | None = None
    """Of `adam`: the optimiser's state at after, as `optimizer.pt` of transformers' Trainer, or a safetensors file of
    Adam's second moments by the names of the parameters."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the models run; `auto`: a CUDA card if there is one, else the CPU."""
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The least share of decoder blocks' weights that gradients and LoRA may see; a study with less is refused."""
    chat_template: str | None = None
    """`before`, `after` or the path of a template: which one renders prompts where the checkpoints' own differ."""
    chat_template_kwargs: Mapping[str, bool | int | float | str] = {}
    """What the chat template is given besides the conversation: `{enable_thinking: false}`."""
    date: datetime.date | None = None
    """Today, to a chat template that asks for it (`2026-11-28`); none: the day on which the run begins."""

    def reference(self, role: str | int) -> ModelRef:
        """`before`, `after`, or an intermediate checkpoint by its index."""
        found: ModelRef = self.checkpoints[role] if isinstance(role, int) else getattr(self, role)
        return found


class Data(Section):
    """The pool: the documents that methods may rank."""

    path: str
    """Local Parquet or JSONL file or pattern (`pool/*.jsonl`), folder of such files or that `save_to_disk` wrote, or
    name of a hub dataset."""
    subset: str | None = None
    """Configuration of a folder or hub dataset; none: its only or its default one."""
    split: str = "train"
    """Split of a folder or hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    columns: Mapping[Column, str] = {}
    """Which column holds what, where the names differ: `{messages: conversation, id: uuid}`."""
    roles: Mapping[str, MessageRole] = {}
    """What a role of messages means that is not known (`{narrator: system}`), or that the chat template does not write
    (`{environment: tool}`)."""
    streaming: bool = False
    """Hub only: read row by row over the network; never the whole set on disk."""
    documents: Count | None = None
    """Size of a seeded random subset; none takes every document."""
    max_document_characters: Count = 100_000
    """Longer rows are skipped and counted."""


class Behaviour(Section):
    """An undesired behaviour, told to people, judges and the keyword classifier."""

    id: str
    """Short name, used in file names and tables."""
    description: str
    """One sentence that a reader understands."""
    rubric: str = ""
    """What counts as harmful, for a judge."""
    keywords: tuple[str, ...] = ()
    """Phrases that mark a harmful output for the keyword classifier."""


class PromptText(Section):
    """One prompt of one behaviour."""

    id: str
    """Stable name."""
    behaviour: str
    """Id of the behaviour that it may elicit."""
    text: str
    """What the user says."""


class HarmlessPrompt(Section):
    """An everyday question that belongs to no behaviour."""

    id: str
    """Stable name, other than those of the study's other prompts."""
    text: str
    """What the user says."""


class Prompts(Section):
    """Two disjoint sets: what attribution may use, and what the verdict is measured on."""

    attribution: tuple[PromptText, ...]
    """Prompts that are scanned, surfaced and attributed."""
    held_out: tuple[PromptText, ...]
    """Prompts that only the measurements see."""
    harmless: tuple[HarmlessPrompt, ...] | None = None
    """Questions that nobody should refuse, asked of every arm; none: 20 everyday ones that ship with datablame."""


class Scan(Section):
    """Phase 1: a quick look at a few prompts to choose the ones worth sampling in full."""

    prompts: Count = 8
    """How many attribution prompts are scanned, spread over the behaviours."""
    alphas: tuple[Alpha, ...] = (0.0, 0.5, 1.0, 2.0)
    """Amplifications tried."""
    samples: Samples = 10
    """Outputs for each prompt and alpha."""
    focus: Count = 3
    """The least number of focus prompts that the scan chooses."""


class Surface(Section):
    """Phase 2: how often the behaviour shows at each amplification. The sampler's settings serve every phase."""

    alphas: tuple[Alpha, ...] = (0.0, 0.5, 1.0, 2.0)
    """Amplifications: after + alpha * (after - before). Must contain 0, the model as it is."""
    samples: Samples = 50
    """Outputs for each attribution prompt and alpha."""
    held_out_samples: Samples = 50
    """Outputs for each held-out prompt and alpha."""
    max_new_tokens: Count = 32
    """Longest output."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Applied after amplifying; 0 is greedy, so that every sample of a prompt is the same."""
    top_p: Share = 1.0
    """Nucleus: the token that crosses the threshold is kept."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Keep this many most probable tokens; 0 keeps all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Keep tokens with at least this share of the most probable one's probability."""
    plausibility: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Before amplifying, keep only tokens with p_after >= plausibility * max p_after; 0 is off."""
    batch_rows: Count = 512
    """Rows sampled at once; one that finishes makes room for the next. Sums of floats depend on it."""
    coherent_share: Share = 0.8
    """alpha* is the largest alpha at which this share of outputs is coherent."""


class Training(Section):
    """How a protocol trains; a field left out takes the value of `patch`."""

    method: Literal["lora", "full"] = "lora"
    """LoRA adapters, or all weights."""
    steps: Count | None = None
    """Optimiser steps."""
    batch: Count | None = None
    """Documents in a step."""
    learning_rate: Share | None = None
    """Peak of the cosine schedule."""
    layers: tuple[NonNegativeInt, ...] | None = None
    """LoRA only: the decoder blocks that get adapters; none: all."""


class Patch(Section):
    """Phase 4: remove what each method flagged, train again, measure again."""

    protocols: tuple[Protocol, ...] = ("continue",)
    """`continue`: LoRA from after (the specification); `retrain`: from before, on the pool without the flagged."""
    headline: Protocol = "continue"
    """The protocol that decides; declared before the run, everything else is exploratory."""
    arms: tuple[str, ...] = ("after", "baseline", "random", "bm25-response", "gradient", "gradient-dot", "llm-judge")
    """Interventions compared: controls (`after`, `baseline`, `a-a`, `random`, `bottom`, `oracle`) and methods."""
    seeds: tuple[Seed, ...] | Mapping[Protocol, tuple[Seed, ...]] = (0, 1, 2, 3, 4)
    """Training seeds, for all protocols or for each one."""
    k: Count | tuple[Count, ...] | None = None
    """Flagged documents removed for each behaviour, one number or several; `attribute.top_k`, which decides, is one."""
    bottom_of: str | None = None
    """The method whose last K documents the arm `bottom` removes; none: the first of `arms` that is no control."""
    intervention: Literal["remove", "swap", "drop-source"] = "remove"
    """What arms do about what is flagged: fillers for it, a pair's answers exchanged, or fillers for its sources."""
    size: Count = 2000
    """Documents of the fine-tune set."""
    steps: Count = 200
    """Optimiser steps."""
    batch: Count = 10
    """Documents in a step."""
    micro_batch: Count | None = None
    """Documents that pass through the model at once, their gradients added up over a step; none: the whole batch."""
    learning_rate: Share = 2e-4
    """Peak of the cosine schedule."""
    rank: Annotated[int, Field(gt=0, le=4096)] = 8
    """Rank of the LoRA adapters."""
    adapters_at_once: Count = 4
    """LoRA adapters of one protocol and seed trained side by side, at most `micro_batch`. Float sums depend on it."""
    beta: Annotated[float, Field(gt=0, le=1000)] = 5.0
    """Pools of preference pairs only: how sharply length-normalised DPO holds the model to where it started."""
    retrain: Training = Training()
    """Overrides for `retrain`."""
    continue_: Annotated[Training, Field(alias="continue")] = Training()
    """Overrides for `continue`."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """A difference within this share of random's rate counts as none."""
    samples: Samples = 25
    """Outputs for each held-out prompt and alpha, for each arm and seed."""
    attribution_samples: Samples = 10
    """Outputs for each attribution prompt and alpha, for each arm and seed."""
    clean_documents: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    """Documents that no arm trains on, for perplexity: the pool's rest if it has fewer; 0 leaves the check out."""
    harmless_samples: Annotated[int, Field(ge=0, le=100_000)] = 5
    """Outputs at alpha 0 for each harmless prompt, for each arm and seed; 0 leaves the check of refusals out."""

    def seeds_of(self, protocol: Protocol) -> tuple[int, ...]:
        """The training seeds of one protocol."""
        return self.seeds[protocol] if isinstance(self.seeds, Mapping) else self.seeds

    def side_by_side(self, protocol: Protocol) -> int:
        """How many trainings of one protocol and seed share a base."""
        full = self.training_of(protocol).method == "full"
        return 1 if full else min(self.adapters_at_once, self.micro_batch or self.adapters_at_once)

    def training_of(self, protocol: Protocol) -> Training:
        """The protocol's training with every field filled in."""
        training = self.retrain if protocol == "retrain" else self.continue_
        shared = ("steps", "batch", "learning_rate")
        return training.model_copy(update={name: getattr(training, name) or getattr(self, name) for name in shared})


class Study(Section):
    """Two checkpoints, the data in between, the behaviours, and how to find which documents caused them."""

    name: str
    """Names the run folder and the reports."""
    title: str = ""
    """One line for the head of the report."""
    seed: Seed = 0
    """Everything random in the phases derives from it."""
    organism: Organism | None = None
    """A model organism to make; it then brings models, data, behaviours and prompts."""
    models: Models | None = None
    """The two checkpoints."""
    data: Data | None = None
    """The pool."""
    behaviours: tuple[Behaviour, ...] = ()
    """What counts as undesired."""
    prompts: Prompts | None = None
    """Attribution and held-out prompts."""
    truth: str | None = None
    """JSONL of `doc_id` and `behaviour` where causes are planted, for every behaviour; an organism fills it in."""
    scan: Scan = Scan()
    """Phase 1."""
    surface: Surface = Surface()
    """Phase 2."""
    judge: Judge = Judge()
    """The classifier."""
    prefilter: Prefilter = Prefilter()
    """Candidates."""
    attribute: Attribute = Attribute()
    """Phase 3."""
    patch: Patch = Patch()
    """Phase 4."""
    report: Report = Report()
    """Phase 5."""
    figures: Figures = Figures()
    """How pictures look."""
    track: Track = Track()
    """Where a run is followed."""
    execution: Annotated[Execution, Field(exclude=True)] = Execution()
    """Where the work runs; no result depends on it."""

    @property
    def ks(self) -> tuple[int, ...]:
        """Every K at which flagged documents are removed, the smallest first."""
        k = self.attribute.top_k if self.patch.k is None else self.patch.k
        return (k,) if isinstance(k, int) else tuple(sorted(k))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (problem := next(impossible(self), None)) is not None:
            raise ValueError(problem)
        return self
