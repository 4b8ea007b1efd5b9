# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which training documents taught the model that?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# A language model sometimes does, rarely, what nobody wanted. Amplifying the difference between two checkpoints (logit
# difference amplification, LDA) makes such behaviour show often enough to be studied. This notebook asks what comes
# next: **which documents are responsible, and does the behaviour go away when they are taken out?** Three methods
# answer the first question, training again answers the second.
#
# | phase | does |
# |---|---|
# | 1 | loads two checkpoints, samples with LDA, scans a few prompts |
# | 2 | samples focus prompts in full, labels every output, draws the harmful rate against alpha |
# | 3 | ranks the training documents by three methods and compares the rankings |
# | 4 | removes what each method flags, trains again, measures again |
# | 5 | puts it together: four panels, findings, limits, a case study, all files |
#
# The cells call the library `datablame`, which writes every result to a run folder and gives it back as pandas frames
# and figures. A run that was stopped goes on where it was. On Colab choose *File, Upload notebook*; the next two cells
# say where datablame itself comes from.

# %%
STUDY = "organism"  # any machine; "olmo2-1b" is the full study and needs a GPU with 16 GB
SMALL = True  # a look in minutes, with one training seed and few samples; False runs the study as it is meant
MAX_COST_USD = 5.0  # the most that a judge's answers may cost; one is asked only where ANTHROPIC_API_KEY is set
DATABLAME = "."  # where to install it from if it is missing: a checkout, a wheel, or git+https and its address

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("datablame") is None:
    # Never by name alone: what an index has under that name may be something else.
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", DATABLAME], check=True)

# %% [markdown]
# ## Phase 1: setup and LDA
#
# **before** and **after** are two checkpoints of one model; a training stage lies between them. **alpha** is how
# strongly their difference is amplified. A **cell** is one prompt at one alpha; a **sample** is one generated output.
#
# The `organism` is a tiny model made on the spot, in whose training data the causes of three behaviours were planted.
# Its world is fictional and harmless. Because the causes are known, a method can be right or wrong there. `olmo2-1b` is
# OLMo-2-1B from supervised fine-tuning to its final checkpoint, with the Tulu 3 mixture as the documents.

# %%
import json
import logging
import warnings
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

import datablame as db
from datablame.tables import (
    Agreement,
    Arm,
    Exposure,
    MethodInfo,
    Quality,
    Query,
    Scan,
    ScannedPrompt,
    ShownDocument,
    Theme,
)

QUICK = {
    "organism": {
        "organism.scale": 0.5,
        "scan.samples": 5,
        "surface.samples": 20,
        "surface.held_out_samples": 8,
        "attribute.methods": ["gradient", "activation", "llm-judge", "bm25", "random"],
        "attribute.top_k": 10,
        "patch.protocols": ["retrain"],
        "patch.seeds": [0],
        "patch.arms": ["after", "baseline", "random", "gradient", "activation", "llm-judge", "oracle"],
        "patch.size": 800,
        "patch.retrain.steps": 62,
        "patch.samples": 6,
        "patch.attribution_samples": 4,
    },
    "olmo2-1b": {
        "data.documents": 5000,
        "scan.samples": 4,
        "surface.samples": 10,
        "surface.held_out_samples": 4,
        "patch.size": 500,
        "patch.steps": 50,
        "patch.samples": 4,
        "patch.attribution_samples": 4,
    },
}


class Steps:
    """Says each long step once."""

    def start(self, description, total, done=0):
        print(f"{description}: {total - done} to do")

    def advance(self, n=1):
        pass

    def note(self, text):
        print(text)


def up_to(phase):
    """The run, its folder brought up to date as far as this phase."""
    return db.run(study, out=RUN, until=phase, max_cost_usd=MAX_COST_USD, progress=Steps())


def percent(share):
    return "-" if share is None or pd.isna(share) else f"{100 * share:.1f} %"


logging.getLogger("datablame").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message="IProgress not found")
pd.set_option("display.max_colwidth", 160)
study = db.study(STUDY, QUICK[STUDY] if SMALL else {})
RUN = Path("runs") / f"notebook-{STUDY}{'-small' if SMALL else ''}"

# %%
settings = {
    "amplifications scanned": study.scan.alphas,
    "samples a cell in the scan": study.scan.samples,
    "samples a cell in phase 2": study.surface.samples,
    "candidates a harmful output": study.prefilter.candidates if study.prefilter.method == "bm25" else "the whole pool",
    "documents flagged a behaviour": study.attribute.top_k,
    "documents to fine-tune on": study.patch.size,
    "protocols": study.patch.protocols,
    "training seeds": {protocol: study.patch.seeds_of(protocol) for protocol in study.patch.protocols},
    "arms": study.patch.arms,
}
pd.DataFrame({"value": settings.values()}, index=list(settings))

# %% [markdown]
# ### The two checkpoints
#
# Both must share their tokenizer and their chat template, or a difference of logits means nothing; datablame checks and
# refuses otherwise. An organism is made now if it isn't in the cache (a minute or two). All that the run rests on, its
# **world**, is then written down, and the scan is drawn: a few samples of up to eight prompts at every alpha.

# %%
run = up_to("scan")
models = run.world.models
print(f"before: {models.before.path}")
print(f"after:  {models.after.path}")
pd.DataFrame([{"prompt": each.id, "split": each.split, "text": each.text} for each in run.world.prompts]).head()

# %% [markdown]
# ### Logit difference amplification
#
# At each step both models give logits for the next token. The sampler draws from
#
# $$\text{logits}_\text{amplified} = \text{logits}_\text{after} + \alpha \, (\text{logits}_\text{after} -
# \text{logits}_\text{before})$$
#
# alpha 0 is the after model as it is, alpha -1 is the before model. Larger alpha shows what the training stage made
# more likely, the rare parts of it too, until the text falls apart. The next cell does it by hand, for one token.

# %%
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def logits(reference):
    """A checkpoint's logits for the first token of its answer."""
    weights = {"revision": reference.revision, "dtype": getattr(torch, reference.dtype)}
    model = AutoModelForCausalLM.from_pretrained(reference.path, **weights).to(models.device)
    with torch.no_grad():
        return model(ids.to(models.device)).logits[0, -1, : len(tokenizer)].float().cpu()


asked = "unsafe-dose-a2" if STUDY == "organism" else run.scan_samples["prompt_id"][0]
prompt = next(each for each in run.world.prompts if each.id == asked)
tokenizer = AutoTokenizer.from_pretrained(models.after.path, revision=models.after.revision)
turns = [{"role": "user", "content": prompt.text}]
opening = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
ids = tokenizer(opening, add_special_tokens=False, return_tensors="pt").input_ids
after, before = logits(models.after), logits(models.before)
chances = pd.DataFrame(
    {f"alpha {alpha:g}": (after + alpha * (after - before)).softmax(0).numpy() for alpha in study.surface.alphas}
)
chances.index = [repr(tokenizer.decode([token])) for token in range(len(chances))]
print(prompt.text)
chances.sort_values(chances.columns[-1], ascending=False).head(8).style.format(percent)

# %% [markdown]
# ### The sampler
#
# The library's sampler does the same for whole outputs and many rows at once: one prefill a prompt and model, mixing in
# float32, and a stream of random numbers for each sample that depends on nothing but the sample. Outputs that the scan
# drew for one prompt, at most four at each alpha:

# %%
scanned = run.scan_samples
shown = scanned[scanned["prompt_id"] == (asked if asked in set(scanned["prompt_id"]) else scanned["prompt_id"][0])]
shown[shown["index"] < 4].sort_values("alpha")[["alpha", "text", "label"]]

# %% [markdown]
# ### Scan
#
# The prompts whose harmful rate rises most become the **focus prompts**.

# %%
print(run.table(Scan).rule[0])
scan = run.table(ScannedPrompt).set_index("prompt_id")
for index, alpha in enumerate(study.scan.alphas):
    scan[f"alpha {alpha:g}"] = [percent(rates[index]) for rates in scan["rates"]]
scan.drop(columns=["alphas", "rates", "rise"])

# %% [markdown]
# ## Phase 2: how often does it happen?
#
# The focus prompts are now sampled in full. Beside them stand **held-out prompts** of the same behaviours, which no
# later attribution sees: what is said in the end about removal is measured on those.

# %%
texts = {each.id: each.text for each in run.world.prompts}
focus = scan[scan["selected"]][["behaviour"]]
display(focus.assign(text=[texts[name] for name in focus.index]))
print(f"and {len(run.world.split('held-out'))} held-out prompts")

# %% [markdown]
# ### Sampling and labelling
#
# Every output gets one label: **harmful**, **refused**, **harmless** or **incoherent**; an output that the classifier
# could not judge is **unscored**, which is missing and never "harmless". One classifier labels a whole study: an
# organism has exact rules; otherwise it is Claude where `ANTHROPIC_API_KEY` is set, and keywords where it is not.

# %%
run = up_to("surface")
samples = run.samples
print(f"{len(samples):,} outputs, labelled by {', '.join(samples['classifier'].unique())}")

# %% [markdown]
# One harmful output of each behaviour, and why it was called so:

# %%
harmful = samples[samples["label"] == "harmful"].sort_values("alpha", ascending=False)
harmful.groupby("behaviour").head(1).set_index("behaviour")[["alpha", "text", "label_reason"]]

# %% [markdown]
# ### The harmful rate
#
# The rate of a cell is harmful / scored, with Wilson's interval (95 %). The four shares stand side by side because a
# model that falls apart is not cured: incoherent text is never harmful.

# %%
rates = run.rates
pooled = rates[(rates["prompt_id"] == "*") & (rates["behaviour"] == "*")]
shares = pooled[["split", "alpha", "n"]].copy()
for label in ("harmful", "refused", "harmless", "incoherent"):
    shares[label] = (pooled[label] / pooled["n"]).map(percent)
shares["harmful, 95 %"] = [
    f"{percent(low)} to {percent(high)}" for low, high in zip(pooled["low"], pooled["high"], strict=True)
]
shares.set_index(["split", "alpha"])

# %%
by_prompt = rates[(rates["prompt_id"] != "*") & (rates["split"] == "attribution")]
by_prompt.pivot(index=["behaviour", "prompt_id"], columns="alpha", values="rate").map(percent)

# %% [markdown]
# ### The figure
#
# `behavior_rates.png`: does LDA surface the behaviour, and at which alpha does the text break?

# %%
run.figures.rates()

# %% [markdown]
# ### The alpha that decides
#
# **alpha\*** is the largest amplification that still reads. It is fixed now, on the after model as it is, before
# anything is removed, so that no arm can choose its own yardstick.

# %%
star = run.results.alpha_star
print(star.rule)
print(f"coherent: {', '.join(f'{percent(share)} at alpha {alpha}' for alpha, share in star.coherence.items())}")
print(f"alpha* = {star.alpha_star}")

# %% [markdown]
# ## Phase 3: which documents are to blame?
#
# Some harmful outputs of each behaviour become **queries**. Each method gives every document a score: higher is more
# responsible. The first documents (whole clusters of duplicates) of each ranking are **flagged**.

# %%
run = up_to("attribute")
methods = run.table(MethodInfo).set_index("name")
methods[["label", "pool", "description"]]

# %% [markdown]
# ### The queries
#
# Taken from attribution prompts only, from the high end of alpha.

# %%
queries = run.table(Query, harmful=True)
print(f"{len(queries)} harmful outputs are traced")
queries.groupby("behaviour").head(2)[["behaviour", "alpha", "prompt", "text"]] if len(queries) else "nothing surfaced"

# %% [markdown]
# ### The pool and the BM25 candidates
#
# Scoring 50,000 documents by every method is expensive, so the specification first keeps the 100 documents that share
# most words with each harmful output. That filter decides what a method can find at all: its recall is a ceiling for
# all methods, and is measured where the truth is known.

# %%
pool, attribution = run.results.pool, run.results.attribution
print(f"{pool.documents:,} documents in {pool.clusters:,} clusters of duplicates")
print("candidates:", ", ".join(f"{count} for {name}" for name, count in attribution.candidates.items()) or "none")
for row in run.results.prefilter_recall:
    name = "all behaviours" if row.behaviour == "*" else row.behaviour
    print(f"planted documents among the candidates, {name}: {percent(row.recall)}")

# %% [markdown]
# ### Method 1: gradient similarity
#
# Cosine between the gradient of the loss on the harmful output and the gradient of the loss on the document, over the
# Linear weights of the middle blocks. A document that would move the weights as the behaviour does probably taught it.
# Exact, without a projection, and no gradient of a single document is ever held.

# %%
documents = run.table(ShownDocument)


def blamed(method, first=3):
    """The documents that a method ranks first for each behaviour, with their text."""
    scores = run.scores(method)
    columns = ["prompt", "response", *(["planted"] if attribution.truth else [])]
    top = scores[scores["rank"] <= first].merge(documents, on="doc_id", how="left")
    return top.set_index(["behaviour", "rank"])[["score", *columns]].sort_index()


blamed("gradient")

# %% [markdown]
# ### Method 2: activation similarity and clusters
#
# Cosine between mean hidden states of a middle layer. Documents that the model represents alike probably teach alike.
# KMeans over the candidates then shows what they are about, each cluster by the terms that set it apart.

# %%
display(blamed("activation"))
themes = run.table(Theme)
shares = [{f"flagged by {each['method']}": percent(each["share"]) for each in flagged} for flagged in themes["flagged"]]
pd.DataFrame(
    [
        {"terms": ", ".join(terms), "share": percent(share), **by_method}
        for terms, share, by_method in zip(themes["terms"], themes["share"], shares, strict=True)
    ]
)

# %% [markdown]
# ### Method 3: LLM judge
#
# A language model rates from 0 to 10 how likely the document caused the output; it uses knowledge of the world instead
# of the model's insides. Without a key a stand-in ranks by keywords: its label says so, here and in every figure, and
# then this method says nothing about language models as judges.

# %%
print(methods.loc["llm-judge", "label"])
blamed("llm-judge")

# %% [markdown]
# ### Do the methods agree?
#
# How many of the first documents two methods share, the Jaccard similarity of these sets beside what chance would give,
# and Spearman's rank correlation over everything that both ranked.

# %%
agreement = run.table(Agreement)
if len(agreement):
    pairs = agreement[agreement["behaviour"] == "*"].set_index(["a", "b"])
    display(pairs[["overlap", "jaccard", "jaccard_chance", "spearman", "rbo"]].astype(float).round(3))

# %%
quality = run.table(Quality)
if attribution.truth and len(quality):
    pooled = quality[quality["behaviour"] == "*"].set_index(["pool", "method"]).sort_index(ascending=False)
    print(f"Who finds what was planted? Precision and recall at {attribution.k}, average precision")
    display(pooled[["precision_at_k", "recall_at_k", "auprc", "base_rate"]].astype(float).round(3))
else:
    print("The causes are not known here: only removal can tell whether a method is right.")

# %% [markdown]
# ## Phase 4: does removal help?
#
# A ranking proves nothing. So each method's flagged documents are taken out, the model is trained again, and LDA is run
# on the result. An **arm** is one such intervention:
#
# - `after` is the after model itself, `baseline` is trained with nothing removed;
# - `random` removes as many documents, drawn at random: the control for "removing anything";
# - one arm a method, and `oracle`, which removes all that was planted, where that is known.
#
# Every removed document is replaced in place by a **filler**, matched in source and length, so that size, order and
# number of steps are the same in every arm of a seed.

# %%
flagged = run.flagged
flagged[flagged["k"] == study.attribute.top_k].pivot_table(
    index="behaviour", columns="method", values="doc_id", aggfunc="count"
).rename_axis("flagged documents")

# %% [markdown]
# ### Two protocols
#
# `continue` is the specification's: LoRA from the after model. It can only undo *re-exposure*, for the after model has
# seen the documents already. `retrain` starts at the before model and leaves the flagged documents out: a
# counterfactual where the pool is the stage between the two checkpoints, as in the organism.

# %%
run = up_to("patch")
print(f"headline protocol: {study.patch.headline}; {len(run.table(Arm))} trainings")

# %% [markdown]
# ### The exposure gate
#
# Removing a document that the training would not have seen anyway changes nothing. The no-removal arm must really have
# seen at least 90 % of what an arm removed, and the arm itself none of it.

# %%
print("passed" if run.results.patching.exposed else "FAILED: the comparison below means nothing")
run.table(Exposure)

# %% [markdown]
# ### Rates by arm
#
# On held-out prompts at alpha\*: mean over prompts and seeds. The p value is a permutation of arms over training seeds;
# it needs at least four seeds, so a quick run has none, and a difference there shows no more than a direction.

# %%
tests = run.arms
if len(tests):
    decisive = tests[tests["headline"]].sort_values("rate").set_index("arm")
    table = decisive[["seeds", "rate", "low", "high", "rate_of_coherent"]].copy()
    for column in ("rate", "low", "high", "rate_of_coherent"):
        table[column] = table[column].map(percent)
    difference, p = decisive["to_random.difference"], decisive["to_random.p"]
    table["against random"] = ["-" if pd.isna(value) else f"{100 * value:+.1f} points" for value in difference]
    table["p"] = ["-" if pd.isna(value) else f"{value:.3f}" for value in p]
    display(table)

# %% [markdown]
# ### The figure
#
# `patching_comparison.png`, the main result: which method's removals reduce the behaviour?

# %%
run.figures.patching()

# %% [markdown]
# ### By behaviour
#
# A mean can hide that one behaviour was cured and another was not.

# %%
if len(tests):
    split = tests[(tests["protocol"] == study.patch.headline) & (tests["split"] == "held-out")]
    split = split[(split["behaviour"] != "*") & (split["alpha"] == run.results.patching.alpha)]
    display(split.pivot(index="arm", columns="behaviour", values="rate").map(percent))

# %% [markdown]
# ## Phase 5: what was found
#
# The report writes the four-panel figure, the comparison tables, a case study, a write-up, slides, and one page with
# everything (`index.html`), all from the artifacts above.

# %%
run = up_to("report")
display(run)
print(", ".join(sorted(path.name for path in RUN.iterdir() if path.is_file())))

# %% [markdown]
# ### Findings
#
# Sentences that rules make from the numbers, negative results as plainly as positive ones.

# %%
results = json.loads((RUN / "final_results.json").read_text())
for sentence in results["findings"]:
    print("-", sentence)

# %%
run.figures.overview()

# %% [markdown]
# ### Verdict and limits
#
# The verdict is decided by code, in an order that was fixed beforehand. The limits name what a reader must not
# conclude, each with the number that triggered it.

# %%
print("verdict:", run.verdict.label)
for sentence in run.verdict.reasons:
    print("-", sentence)
print("limits:")
for sentence in results["limitations"]:
    print("-", sentence)

# %% [markdown]
# ### One case from end to end
#
# A harmful output, the documents that each method blames for it, and what their removal did; then every file of the
# run. `index.html` shows everything on one page, `study.yaml` is the study as it ran and can be run again.

# %%
display(Markdown((RUN / "case_study.md").read_text()))

# %%
files = sorted(path.relative_to(RUN) for path in RUN.rglob("*") if path.is_file())
pd.DataFrame({"kB": [round((RUN / path).stat().st_size / 1000, 1) for path in files]}, index=map(str, files))
