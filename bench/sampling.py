"""Sampling speed beside Hugging Face's `generate`, from the same conditional distribution, in one run on one thread.

One generator draws for the same targets twice: by our decoding, and as a `GPT2LMHeadModel` whose blocks add the control
signal by hooks, so that `generate` does the rest. Before anything is timed, both must give every token of drawn sequences
the same log-probability. All that is needed is timed: our folding and our random streams, their projection of the
conditions. `generate` is given its best batch size, and two ways to write the control layers: keys and values computed once
an activation, as in the paper's formulas (hooks), and folded as ours are (hooks_folded). The ratio is taken to the faster.

Generators: `trained` is the variant `paper` of the first study, that of SmolLM2, if `make figures` has made it below --root, on a
target of each of 16 heads; `random` has an embedded study's shape and random weights (V not zero, so that control matters);
`gpt2-small` likewise. The ratio is that of the fastest turns; `ratio_low` and `ratio_high` are those of single turns.

    python -m bench.sampling --out results/bench/sampling.csv
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.gpt2 import to_hf
from bench.tables import fastest, finish, in_turns, options, spread

# isort: split
import numpy as np
import torch
from torch import Tensor, nn

from inversescope.config import load_config
from inversescope.generator.backbone import BackboneShape
from inversescope.generator.condition import Condition
from inversescope.generator.inversescope import Folded, GeneratorShape, InverseScope
from inversescope.sampling.decode import decode
from inversescope.sampling.mixing import Mixer
from inversescope.streams import stream_uniforms

VARIANT = "paper"
HEADS = 16
#: Largest difference of a token's log-probability: both sides are sums of float32 products in another order.
TOLERANCE = 2e-3
#: Block, its hidden states after attention (rows, T, D) -> what is added to them.
Signal = Callable[[int, Tensor], Tensor]
#: Latent conditions (B, C), target of each row -> the signal of a batch of `generate`.
Signals = Callable[[Tensor, Tensor], Signal]


@dataclass
class Case:
    """A generator, the activations it draws for, and how much is drawn."""

    name: str
    model: InverseScope
    condition: Condition
    end: int
    draws: int
    length: int
    batches: tuple[int, ...]  # targets at a time that `generate` may choose from
    repeats: int

    @property
    def targets(self) -> int:
        """Number of activations."""
        return sum(len(z) for z in self.condition.z.values())


def main() -> int:
    """Measure, print the table, and write it where asked."""
    parser = options(__doc__.splitlines()[0], "sampling")
    parser.add_argument(
        "--root", type=Path, default=Path("."), help="where data/ lies, for the trained generator"
    )
    parser.add_argument(
        "--config", action="append", help="configuration of the trained generator, may be repeated"
    )
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=list(CASES), help="which generators"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name in arguments.cases:
        files = arguments.config or [arguments.root / "config" / "config.yaml"]
        case = CASES[name](arguments.root, files)
        if case is None:
            print(
                f"no trained generator below {arguments.root}: its rows are left out (make figures)",
                file=sys.stderr,
            )
        else:
            rows += measure(case)
    finish(rows, arguments.out)
    return 0


def trained_case(root: Path, files: list[Path]) -> Case | None:
    """The study's generator at its own targets, one of each of some heads; None if it has not been trained."""
    from inversescope.context import Context
    from inversescope.generator.build import backbone_tokenizer, load_generator

    config = load_config(files)
    experiment = next(iter(config.experiments.values()))
    own = config.of(experiment.task, experiment.model)
    context = Context(root, own, experiment.task, experiment.model)
    if not (context.generator_dir("inversescope", VARIANT) / "meta.json").exists():
        return None
    model, _ = load_generator(context, "inversescope", VARIANT)
    tokenizer = backbone_tokenizer(context)
    heads = [site.label for site in context.plan.sites_of(VARIANT) if site.head is not None]
    z = {}
    for label in heads[:: max(1, len(heads) // HEADS)][:HEADS]:
        some = context.activations("test", label)[:1]
        padded = np.zeros((len(some), model.shape.sites[label]), np.float32)
        padded[:, : some.shape[1]] = some
        z[label] = torch.from_numpy(padded)
    some_texts = context.task.texts(np.arange(0, context.task.size, 997))
    length = max(len(ids) for ids in tokenizer(some_texts, add_special_tokens=False)["input_ids"]) + 1
    return Case("trained", model, Condition(z), int(tokenizer.eos_token_id), 100, length, (2, 4, 8, 16), 4)


def random_case(root: Path, files: list[Path]) -> Case:
    """The embedded study's shape with random weights."""
    return with_random_weights(
        "random", BackboneShape(81, 32, 4, 4, 64, 256, False), 64, 64, 16, 16, 100, 20, (2, 4, 8, 16), 4
    )


def gpt2_case(root: Path, files: list[Path]) -> Case:
    """The shape of `config/paper.yaml` with random weights: few targets, few tokens."""
    return with_random_weights(
        "gpt2-small", BackboneShape(50257, 1024, 12, 12, 768, 3072), 768, 768, 64, 4, 16, 6, (4,), 2
    )


CASES: dict[str, Callable[[Path, list[Path]], Case | None]] = {
    "trained": trained_case,
    "random": random_case,
    "gpt2-small": gpt2_case,
}


def with_random_weights(
    name: str,
    backbone: BackboneShape,
    width: int,
    d_condition: int,
    d_head: int,
    targets: int,
    draws: int,
    length: int,
    batches: tuple[int, ...],
    repeats: int,
) -> Case:
    """A generator with 32 control heads and random weights, and random activations."""
    torch.manual_seed(0)
    shape = GeneratorShape(
        backbone, {"L0H0": width}, {"L0H0": 1.0}, n_heads=32, d_head=d_head, d_condition=d_condition
    )
    model = InverseScope(shape).eval().requires_grad_(False)
    for layer in model.control:
        layer.value.weight.normal_(std=0.02)
    return Case(
        name, model, Condition({"L0H0": torch.randn(targets, width)}), 0, draws, length, batches, repeats
    )


def measure(case: Case) -> list[dict[str, object]]:
    """Rows of one generator: ours, then each way to use `generate`."""
    model, condition = case.model, case.condition
    peer = Peer(model, case.end)
    signals: dict[str, Signals] = {
        "generate, hooks": lambda c, rows: unfolded_signal(model, c, rows),
        "generate, hooks_folded": lambda c, rows: folded_signal(model, c, rows),
    }
    difference = {name: check_equal(case, peer, make) for name, make in signals.items()}
    targets, draws = np.arange(case.targets), np.arange(case.draws)

    def ours(mixer: Mixer | None = None) -> np.ndarray:
        uniforms = stream_uniforms(0, case.name, targets, draws, case.length)
        return decode(model, condition, uniforms, end=case.end, mixer=mixer).tokens

    @torch.inference_mode()
    def theirs(make: Signals, batch: int) -> np.ndarray:
        torch.manual_seed(0)
        latent = model.encode(condition)
        parts = []
        for low in range(0, case.targets, batch):
            some = latent[low : low + batch]
            rows = torch.arange(len(some)).repeat_interleave(case.draws)
            parts.append(peer.generate(make(some, rows), len(rows), case.length))
        return np.concatenate(parts)

    runs: dict[str, Callable[[], np.ndarray]] = {"inversescope": ours}
    batch = {"inversescope": case.targets}
    if case.name == "random":
        mixer = mixing(case)
        runs["inversescope, cache mixing"], batch["inversescope, cache mixing"] = (
            (lambda: ours(mixer)),
            case.targets,
        )
    for name, make in signals.items():
        tried = {str(size): (lambda size=size, make=make: theirs(make, size)) for size in case.batches}
        seconds = fastest(tried, 1) if len(tried) > 1 else {str(case.batches[0]): 0.0}
        best = min(seconds, key=lambda size: seconds[size])
        runs[name], batch[name] = tried[best], int(best)
    if case.name == "trained":
        # As samplers that take one activation at a time call it; not what the ratio is taken to.
        single = "generate, hooks, one target at a time"
        runs[single], batch[single] = (lambda: theirs(signals["generate, hooks"], 1)), 1

    tokens = {name: count_tokens(run(), case.end) for name, run in runs.items()}
    turns = in_turns(runs, case.repeats)
    speed = {name: tokens[name] / min(turns[name]) for name in runs}
    a_token = {name: [second / tokens[name] for second in turns[name]] for name in runs}
    peers = max(speed[name] for name in signals)
    return [
        {
            "generator": case.name,
            "method": name,
            "targets": case.targets,
            "draws": case.draws,
            "max_tokens": case.length,
            "targets_a_batch": batch[name],
            "tokens": tokens[name],
            "tokens_per_s": speed[name],
            # Ours over the faster way to use `generate`.
            "speed_ratio": speed[name] / peers if name.startswith("inversescope") else None,
            **(
                spread(a_token[name], *(a_token[peer] for peer in signals))
                if name.startswith("inversescope")
                else {}
            ),
            "largest_log_probability_difference": difference.get(name),
        }
        for name in runs
    ]


def count_tokens(tokens: np.ndarray, end: int) -> int:
    """Drawn tokens of sequences (..., T), each up to its first end token and with it."""
    ended = tokens == end
    return int(np.where(ended.any(-1), ended.argmax(-1) + 1, tokens.shape[-1]).sum())


class Peer:
    """The backbone as a `GPT2LMHeadModel` that adds a control signal after each attention's residual."""

    def __init__(self, model: InverseScope, end: int) -> None:
        self.end = end
        self.hf = to_hf(model.backbone).eval().requires_grad_(False)
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            setattr(self.hf.generation_config, name, end)
        self.signal: Signal | None = None
        self.entering: Tensor | None = None
        for index, block in enumerate(self.hf.transformer.h):
            block.register_forward_pre_hook(self._remember)
            block.attn.register_forward_hook(
                lambda module, args, output, index=index: self._control(index, output)
            )

    def _remember(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.entering = args[0]

    def _control(self, index: int, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.signal is not None and self.entering is not None
        attended = output[0]
        return (attended + self.signal(index, attended + self.entering), *output[1:])

    @torch.inference_mode()
    def log_probabilities(self, signal: Signal, tokens: Tensor) -> Tensor:
        """Log-probabilities (rows, T, V) along tokens (rows, T)."""
        self.signal = signal
        return torch.log_softmax(self.hf(tokens, use_cache=False).logits, -1)

    @torch.inference_mode()
    def generate(self, signal: Signal, rows: int, length: int) -> np.ndarray:
        """Drawn tokens (rows, length) without the start token, by plain sampling at temperature 1."""
        self.signal = signal
        start = torch.full((rows, 1), self.end)
        drawn = self.hf.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=length,
            use_cache=True,
        )[:, 1:]
        return nn.functional.pad(drawn, (0, length - drawn.shape[1]), value=self.end).numpy()


def folded_signal(model: InverseScope, latent: Tensor, rows: Tensor) -> Signal:
    """Control layers folded as ours, once an activation, copied to each of its draws."""
    parts = zip(*(layer.fold(latent) for layer in model.control), strict=True)
    return model.controller(Folded(*(list(part) for part in parts), latent).rows(rows))


def unfolded_signal(model: InverseScope, latent: Tensor, rows: Tensor) -> Signal:
    """Control layers as the paper writes them: q = Q h + q0 a token; k and v once an activation; sum of tanh(<q, k>) v."""
    keys = [layer.key(latent).unflatten(-1, (layer.n_heads, -1))[rows] for layer in model.control]
    values = [layer.value(latent).unflatten(-1, (layer.n_heads, -1))[rows] for layer in model.control]

    def signal(index: int, h: Tensor) -> Tensor:
        layer = model.control[index]
        q = layer.query(layer.norm(h)).unflatten(-1, (layer.n_heads, layer.d_head))
        scores = torch.einsum("bthk,bhk->bth", q, keys[index]) * layer.d_head**-0.5
        return torch.bmm(torch.tanh(scores), values[index])

    return signal


@torch.inference_mode()
def check_equal(case: Case, peer: Peer, make: Signals) -> float:
    """Largest difference of log-probabilities between ours and a peer's, along sequences that ours drew.

    Raises:
        AssertionError: they are not the same distribution, or the activation makes no difference to it.
    """
    uniforms = stream_uniforms(1, case.name, np.arange(case.targets), np.arange(1), case.length)
    drawn = torch.from_numpy(decode(case.model, case.condition, uniforms, end=case.end).tokens[:, 0])
    tokens = nn.functional.pad(drawn[:, :-1], (1, 0), value=case.end)
    ours = case.model.log_probabilities(tokens, case.model.fold(case.condition))
    plain = torch.log_softmax(case.model.backbone(tokens), -1)
    theirs = peer.log_probabilities(
        make(case.model.encode(case.condition), torch.arange(case.targets)), tokens
    )
    # Where both are practically impossible the difference does not matter to what is drawn.
    likely = ours > -30.0
    difference = float((theirs - ours)[likely].abs().max())
    assert difference < TOLERANCE, f"log-probabilities differ by {difference}"
    assert float((ours - plain)[likely].abs().max()) > 100 * TOLERANCE, (
        "the control signal makes no difference"
    )
    return difference


def mixing(case: Case) -> Mixer:
    """Cached neighbours of each target, 256 random sequences each: what cache mixing costs beside plain decoding."""
    rng = np.random.default_rng(0)
    vocabulary = case.model.shape.backbone.vocab_size
    sequences = rng.integers(1, vocabulary, (case.targets, 256, case.length))
    sequences[..., -1] = case.end
    return Mixer(list(sequences), vocabulary, 5.0)


if __name__ == "__main__":
    sys.exit(main())
