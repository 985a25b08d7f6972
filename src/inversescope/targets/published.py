"""Stage `import_checkpoint`: a published GPT-2 checkpoint and the vocabulary that it was trained with become a target model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inversescope.config.targets import CheckpointConfig
from inversescope.context import Context, echo
from inversescope.errors import InputError, first_line
from inversescope.store import atomic_path, checked, fetch, file_hash, read_json, write_table
from inversescope.streams import stream
from inversescope.targets.files import CHECKPOINT_CHECKS, MASKS, check_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FRESH_PROMPTS = 5000  # whose answers are asked of an imported model


def import_checkpoint(context: Context) -> None:
    """Write data/{task}/{model}/target from a checkpoint of Hugging Face's GPT-2 architecture and a character vocabulary.

    Weights are read from safetensors, or from a .bin file with `weights_only`: nothing in it is run. The share of right answers
    to fresh prompts is measured and written to target.json and to results/{task}/{model}/target_import.csv.

    Raises:
        InputError: a file is missing, cannot be fetched or is not the one that the configuration pins; it holds other things than
            weights; they are not those of the architecture; vocabulary and embedding differ in size; or too few answers are right
            (`training.gate_accuracy`), as where the vocabulary is in another order.
    """
    import pandas as pd

    from inversescope.targets.fitness import check_target
    from inversescope.targets.models import Target, check_size, save_trained
    from inversescope.targets.tokenizers import character_tokenizer

    settings, name, task = context.config.models[context.model_name], context.model_name, context.task
    if settings.checkpoint is None:
        raise InputError(
            f"model {name} is no checkpoint to import (source: {settings.source})", "set source: checkpoint"
        )
    vocabulary = settings.checkpoint.vocabulary
    missing = [word for word in task.words() if word not in vocabulary.characters]
    if missing:
        raise InputError(
            f"the vocabulary of model {name} lacks {missing[0]!r}, which task {task.name} writes",
            f"correct models.{name}.checkpoint.vocabulary, or change the task's characters to the model's",
        )
    tokenizer = character_tokenizer(vocabulary.characters, vocabulary.end, vocabulary.unknown)
    pinned = settings.checkpoint.sha256
    weights_name = next((file for file in WEIGHTS if file in pinned), None)
    about = find_file(context, settings.checkpoint, "config.json")
    weights = find_file(context, settings.checkpoint, *([weights_name] if weights_name else WEIGHTS))
    model = build_checkpoint(about, weights, len(vocabulary.characters), name)
    check_size(name, settings, model.config.n_layer, model.config.n_head)
    asked, rng = context.plan.settings, stream(context.config.seed, "import_checkpoint", "check")
    check_target(Target(model, tokenizer, name), task, asked.sites, asked.patched, rng)
    accuracy = fresh_accuracy(context, model, tokenizer)
    gate = settings.training.gate_accuracy
    if accuracy < gate:
        raise InputError(
            f"model {name} answers {accuracy:.4f} of {FRESH_PROMPTS} fresh prompts of {task.name}, less than its gate {gate}",
            f"correct models.{name}.checkpoint.vocabulary: it must list the characters in the order of the model's ids; or lower "
            f"models.{name}.training.gate_accuracy",
        )
    meta = {
        "imported": weights.name,
        "revision": file_hash(weights),
        "accuracy": accuracy,
        "n_layers": model.config.n_layer,
        "n_heads": model.config.n_head,
        "d_model": model.config.n_embd,
    }
    save_trained(context.target_dir, model, tokenizer, name, meta)
    row = {"model": name, "task": task.name, "n_prompts": FRESH_PROMPTS, **meta}
    write_table(pd.DataFrame([row]), context.results / "target_import.csv")
    echo(f"import_checkpoint: {name} answers {accuracy:.4f} of {FRESH_PROMPTS} fresh prompts of {task.name}")


def find_file(context: Context, checkpoint: CheckpointConfig, *names: str) -> Path:
    """The first of some files that is there: in the checkpoint's own folder, in the local mirror, or fetched from its URL.

    Raises:
        InputError: none is there, or its SHA-256 is not the pinned one.
    """
    mirror = context.config.mirror
    folders = [Path(checkpoint.folder), *([context.root / mirror / checkpoint.folder] if mirror else [])]
    fetched = context.target_dir / "upstream" / names[0]
    found = [folder / name for name in names for folder in folders] + [fetched]
    path = next((path for path in found if path.is_file()), None)
    if path is not None:
        checked(path.read_bytes(), checkpoint.sha256.get(path.name), path)
        return path
    if not checkpoint.url:
        raise InputError(
            f"{' or '.join(names)} of the checkpoint is neither in {' nor in '.join(map(str, folders))}",
            "set checkpoint.folder of the model to where it lies, or checkpoint.url and its SHA-256 sums",
        )
    content = fetch(f"{checkpoint.url.rstrip('/')}/{names[0]}", checkpoint.sha256.get(names[0]))
    with atomic_path(fetched) as part:
        part.write_bytes(content)
    return fetched


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights, running nothing that is in it. Raises `InputError` if it holds anything but tensors."""
    import torch
    from safetensors.torch import load_file

    remedy = "only tensors are read, never code: ask its author for safetensors, or for the state dict alone"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a hostile or broken file makes it raise
        raise InputError(f"{path} is no file of weights ({first_line(error)[:160]})", remedy) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path} holds other things than weights", remedy)
    return found


def build_checkpoint(about: Path, weights: Path, vocabulary: int, name: str) -> PreTrainedModel:
    """A GPT-2 language model from its config.json and weights, in evaluation mode.

    Args:
        vocabulary: number of tokens that the configuration names.

    Raises:
        InputError: not a GPT-2, or weights, vocabulary and shape do not fit.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    check_files(about.parent, CHECKPOINT_CHECKS)
    described = read_json(about)
    if described.get("model_type") != "gpt2":
        raise InputError(
            f"{about} describes a '{described.get('model_type')}', not a gpt2",
            "load it with source: local or hub, which know other architectures",
        )
    tensors = {
        (key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"): value.float()
        for key, value in read_weights(weights).items()
        if not key.endswith(MASKS)
    }
    embedding = tensors.get("transformer.wte.weight")
    if embedding is None:
        raise InputError(f"{weights} has no embedding transformer.wte.weight", "give a GPT-2 checkpoint")
    if len(embedding) != vocabulary:
        raise InputError(
            f"the embedding of model {name} has {len(embedding)} tokens, its vocabulary names {vocabulary}",
            f"list all characters in order of their ids in models.{name}.checkpoint.vocabulary.characters",
        )
    tensors.setdefault("lm_head.weight", embedding)
    try:
        config = GPT2Config(**{**described, "torch_dtype": None, "vocab_size": vocabulary})
        with torch.random.fork_rng(devices=[]):
            model = GPT2LMHeadModel(config)
        model.load_state_dict(tensors)
    except Exception as error:  # what a configuration says may be of any type
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{weights} does not fit {about} ({reason})", "give both files of one checkpoint"
        ) from error
    return model.eval().requires_grad_(False)


def fresh_accuracy(context: Context, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of fresh prompts of the prior whose answer is right in all its tokens."""
    from inversescope.targets.train import answer_tokens, answered_right

    rng = stream(context.config.seed, "import_checkpoint")
    index = context.task.sample(FRESH_PROMPTS, None, rng, replace=True)
    return float(answered_right(model, *answer_tokens(context.task, tokenizer, index)).mean())
