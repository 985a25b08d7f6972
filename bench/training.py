"""Training speed of the generator, as a share of this machine's measured matrix-product peak, on one thread.

The stage `train_generator` itself runs for some steps of the variants `paper` and `default` of config/config.yaml, on the
activations of a randomly initialised target of the embedded shape at all sites of the study. Step time is everything in a
step: pairs and their neighbour search, loss, gradients, optimiser. Floating-point operations are those of PyTorch's counter,
that is of matrix products alone. The peak is the best of large float32 products by PyTorch (its default and oneDNN) and NumPy:
they call different libraries, of which one may know this processor better than the others.

    python -m bench.training --out results/bench/training.csv
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.tables import fastest, finish, options

# isort: split
import numpy as np
import torch
from bench.cost import Operations

from inversescope.cli import run_stage
from inversescope.config import Config, load_config
from inversescope.context import Context
from inversescope.generator.backbone import Backbone, BackboneShape
from inversescope.generator.pairs import Batch, KernelPairs, NoisePairs
from inversescope.store import save_checkpoint
from inversescope.targets.models import build_model, save_trained
from inversescope.targets.speed import linear
from inversescope.targets.tokenizers import tokenizer_hash, word_tokenizer

VARIANTS = ("paper", "default")
#: Steps left out of the timing, and steps timed: whole chunks of steps that share a neighbour search.
WARM_UP, TIMED = 16, 32


@dataclass
class Timeline:
    """When each step asked for its pairs, how long they took, and how many tokens they hold."""

    starts: list[float] = field(default_factory=list)
    pairs: list[float] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def main() -> int:
    """Measure, print the table, and write it where asked."""
    parser = options(__doc__.splitlines()[0], "training")
    parser.add_argument(
        "--config", action="append", help="configuration, may be repeated; config/config.yaml if absent"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    peaks = matrix_product_peaks()
    with tempfile.TemporaryDirectory() as folder:
        context = prepare(Path(folder), load_config(arguments.config or ["config/config.yaml"]))
        finish([measure(context, variant, peaks) for variant in VARIANTS], arguments.out)
    return 0


def matrix_product_peaks() -> dict[str, float]:
    """Operations a second of square float32 products, by library: the best of some sizes."""
    peaks: dict[str, float] = {}
    for size in (512, 1024, 2048):
        a = np.random.default_rng(0).standard_normal((size, size), np.float32)
        t = torch.from_numpy(a)
        runs: dict[str, Callable[[], object]] = {"torch": lambda t=t: t @ t, "numpy": lambda a=a: a @ a}
        if torch.backends.mkldnn.is_available():
            runs["onednn"] = lambda t=t: linear(t, t)
        for name, seconds in fastest(runs, 5).items():
            peaks[name] = max(peaks.get(name, 0.0), 2 * size**3 / seconds)
    return peaks


def prepare(root: Path, config: Config) -> Context:
    """Everything that `train_generator` reads: prompts, activations of a random target, a random backbone."""
    trained = (item for item in config.experiments.items() if config.models[item[1].model].candidates)
    name, experiment = next(trained)
    # Only the cache is read: no need to run all of the prior.
    drawn = {name: experiment.model_copy(update={"n_reference": 1})}
    config = config.model_copy(update={"experiments": {**config.experiments, **drawn}})
    own = config.of(experiment.task, experiment.model)
    context = Context(root, own, experiment.task, experiment.model)
    task = context.task
    tokenizer = word_tokenizer(task.words())
    spec = next(iter(config.models[experiment.model].candidates.values()))
    model = build_model(spec.shape, len(tokenizer), spec.seed, initializer_range=spec.shape.initializer_range)
    about = {key: getattr(spec.shape, key) for key in ("n_layers", "n_heads", "d_model")}
    save_trained(context.target_dir, model, tokenizer, experiment.model, about)
    run_stage(context, "make_prompts", split="train")
    run_stage(context, "extract_activations", split="train")
    shape = config.backbone.shape
    backbone = Backbone(
        BackboneShape(
            len(tokenizer),
            shape.n_positions,
            shape.n_layers,
            shape.n_heads,
            shape.d_model,
            shape.d_mlp or 4 * shape.d_model,
            shape.tied_embeddings,
        )
    )
    state = {name: value.detach().numpy() for name, value in backbone.state_dict().items()}
    meta = {"shape": asdict(backbone.shape), "tokenizer_hash": tokenizer_hash(tokenizer)}
    save_checkpoint(context.backbone_dir, state, meta)
    return context


def measure(context: Context, variant: str, peaks: dict[str, float]) -> dict[str, object]:
    """One row: speed of a variant's training steps."""
    with Operations() as counter:
        train(context, variant, 1)
    with recorded() as timeline:
        train(context, variant, WARM_UP + TIMED + 1)
    steps = slice(WARM_UP, WARM_UP + TIMED)
    seconds = timeline.starts[WARM_UP + TIMED] - timeline.starts[WARM_UP]
    operations = counter.total
    peak = max(peaks.values())
    return {
        "variant": variant,
        "sites": len(context.plan.sites_of(variant)),
        "sequences_a_step": timeline.sequences[WARM_UP],
        "seconds_a_step": seconds / TIMED,
        "tokens_per_s": sum(timeline.tokens[steps]) / seconds,
        "share_of_time_in_pairs": sum(timeline.pairs[steps]) / seconds,
        "operations_a_step": operations,
        "operations_per_s": operations * TIMED / seconds,
        "peak_operations_per_s": peak,
        "share_of_peak": operations * TIMED / seconds / peak,
        **{f"peak_of_{name}": value for name, value in peaks.items()},
    }


def train(context: Context, variant: str, steps: int) -> None:
    """Run the stage for some steps."""
    settings = context.config.variant(variant).model_copy(update={"steps": steps})
    config = context.config.model_copy(
        update={"variants": {**context.config.variants, variant: settings}, "budget": 1.0}
    )
    few = Context(context.root, config, context.task_name, context.model_name)
    run_stage(few, "train_generator", generator="inversescope", variant=variant)


@contextmanager
def recorded() -> Iterator[Timeline]:
    """Record each call for a step's pairs."""
    timeline = Timeline()
    originals: dict[type, Any] = {source: source.batch for source in (NoisePairs, KernelPairs)}

    def record(original: Any) -> Any:
        def batch(self: Any, step: int) -> Batch:
            timeline.starts.append(time.process_time())
            result: Batch = original(self, step)
            timeline.pairs.append(time.process_time() - timeline.starts[-1])
            timeline.sequences.append(len(result.lengths))
            timeline.tokens.append(
                int(result.lengths.sum()) - len(result.lengths)
            )  # the start token is given
            return result

        return batch

    for source, original in originals.items():
        source.batch = record(original)
    try:
        yield timeline
    finally:
        for source, original in originals.items():
            source.batch = original


if __name__ == "__main__":
    sys.exit(main())
