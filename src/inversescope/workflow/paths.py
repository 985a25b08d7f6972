"""Where files lie, each pattern once: rules use them as they are, stages by `Context.path`.

Names in braces are Snakemake's wildcards. All paths are relative to the project's root.
"""

from __future__ import annotations

from collections.abc import Sequence

#: What is kept of an experiment beside its results; each kind of file has its own pattern below.
DATA = "data/{task}/{model}/{file}"

#: Prompts of a split, and the splits that every task has; `val` is there where an experiment asks for it.
PROMPTS = "data/{task}/prompts/{split}.parquet"
SPLITS = ("train", "test", "reference")
ALL_SPLITS = (*SPLITS, "val")

#: The target model, and the candidates that it is selected from.
TARGET = "data/{task}/{model}/target/{file}"
CANDIDATE = "data/{task}/{model}/target/candidates/{candidate}/{file}"
#: The float32 weights of a GGUF file, which all tasks on the model read.
WEIGHTS = "data/models/{model}/{file}"
#: What the hub's cache holds for an experiment beside its target.
FETCHED = "data/{task}/{model}/fetched.json"
#: Files of a model that is trained or imported here; others stay in the hub's cache or in their own directory.
TARGET_FILES = ("target.json", "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")

ACTIVATIONS = "data/{task}/{model}/activations/{split}/{site}.safetensors"

#: The backbone that knows the prior, and the generators; both consist of the same files.
BACKBONE = "data/{task}/{model}/checkpoints/backbone/{file}"
CHECKPOINT = "data/{task}/{model}/checkpoints/{generator}/{variant}/{file}"
CHECKPOINT_FILES = ("model.safetensors", "meta.json")
TRAINING_LOG = "results/{task}/{model}/training/{generator}/{variant}.csv"

#: Raw candidates of a site, log q of its cached neighbours, seconds spent.
SAMPLES = "results/{task}/{model}/samples/{generator}/{variant}/{site}{suffix}"
SAMPLE_SUFFIXES = (".parquet", ".cache.parquet", ".json")
PRIOR_SAMPLES = "results/{task}/{model}/samples/backbone.parquet"

#: The epsilons of bandwidths that are shares of the prior, a site each.
BANDWIDTHS = "results/{task}/{model}/bandwidths.csv"

#: Exact values, states of chains, estimates (of further variants in the folder of their group, `study/`) and tables of a site.
EXACT = "results/{task}/{model}/exact/{site}.parquet"
MCMC = "results/{task}/{model}/mcmc/{site}.parquet"
CELLS = "results/{task}/{model}/{group}cells/{site}.parquet"
SITE_TABLE = "results/{task}/{model}/{table}/{site}.csv"

#: Exact posteriors of all questions, and judged answers to them; those of further variants in the folder of their group.
POSTERIORS = "results/{task}/{model}/posteriors.parquet"
ANSWERS = "results/{task}/{model}/{group}answers.parquet"

#: General text that is copied from the hub; shuffled activations of a corpus at all positions but the first; autoencoders on them.
GENERAL = "data/{task}/{model}/general/{file}"
POSITIONS = "data/{task}/{model}/positions/{corpus}/{site}.safetensors"
AUTOENCODER = "data/{task}/{model}/sae/{corpus}/{site}/{file}"
#: The one of the sparsity that the configuration calls published.
PUBLISHED = "data/{task}/{model}/sae/{corpus}/{site}/published/{file}"

#: What is made of all sites of an experiment.
RESULT = "results/{task}/{model}/{file}"
TABLE = "results/tables/{task}_{model}_{name}.{suffix}"
BROWSER = "results/browser/{task}_{model}.html"


def fill(pattern: str, **values: str | Sequence[str]) -> list[str]:
    """Fill in some names of a pattern and leave the others: a path for each combination of the values, the last one fastest.

    Snakemake's `expand(..., allow_missing=True)`, for code that runs without Snakemake too.
    """
    paths = [pattern]
    for name, value in values.items():
        several = [value] if isinstance(value, str) else value
        paths = [path.replace(f"{{{name}}}", one) for path in paths for one in several]
    return paths
