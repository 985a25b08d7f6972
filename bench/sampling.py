"""Sampling speed beside Hugging Face's `generate`, from the same conditional distribution, in one run on one thread.

The same randomly initialised generator (V not zero, so that control matters) draws for the same targets: once by our
decoding, and once as a `GPT2LMHeadModel` whose blocks add the control signal by hooks, so that `generate` does the rest.
Before anything is timed, both must give every token of drawn sequences the same log-probability. Everything that is needed
is timed: our folding and our random streams, their projection of the conditions. `generate` is given its best batch size,
and two ways to write the control layers: keys and values computed once an activation, as in the paper's formulas (hooks),
and folded as ours are (hooks_folded). The ratio is taken to the faster of the two.

    python -m bench.sampling --out results/bench/sampling.csv
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from bench.tables import fastest, finish, options

# isort: split
import numpy as np
import torch
from torch import Tensor, nn

from inversescope.generator.backbone import BackboneShape, to_hf
from inversescope.generator.inversescope import Condition, Folded, GeneratorShape, InverseScope
from inversescope.sampling import Mixer, decode, stream_uniforms

END = 0
#: Largest difference of a token's log-probability: both sides are sums of float32 products in another order.
TOLERANCE = 2e-3
#: Block -> what is added to its hidden states after attention (rows, T, D).
Signal = Callable[[int, Tensor], Tensor]
#: Row indices of the targets that a batch of `generate` draws for -> the signal.
Signals = Callable[[Tensor], Signal]


@dataclass(frozen=True)
class Setting:
    """A generator's shape, and how much is drawn from it."""

    name: str
    backbone: BackboneShape
    site_width: int
    d_condition: int
    d_head: int
    site_map_blocks: int
    targets: int
    draws: int
    length: int
    batches: tuple[int, ...]  # targets at a time that `generate` may choose from
    repeats: int


SETTINGS = (
    Setting(
        "embedded",
        BackboneShape(81, 32, 4, 4, 64, 256, False),
        16,
        128,
        16,
        2,
        50,
        40,
        20,
        (5, 10, 25, 50),
        4,
    ),
    Setting("gpt2-small", BackboneShape(50257, 1024, 12, 12, 768, 3072), 64, 768, 64, 0, 4, 16, 6, (4,), 2),
)


def main() -> int:
    """Measure, print the table, and write it where asked."""
    parser = options(__doc__.splitlines()[0], "sampling")
    parser.add_argument("--settings", nargs="+", default=[s.name for s in SETTINGS], help="which generators")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [setting for setting in SETTINGS if setting.name in arguments.settings]
    finish([row for setting in chosen for row in measure(setting)], arguments.out)
    return 0


def measure(setting: Setting) -> list[dict[str, object]]:
    """Rows of one generator: ours, then each way to use `generate`."""
    model, condition = make_generator(setting)
    peer = Peer(model)
    signals = {
        "generate, hooks": unfolded_signals(model, condition),
        "generate, hooks_folded": folded_signals(model, condition),
    }
    difference = {name: check_equal(model, condition, peer, make, setting) for name, make in signals.items()}

    targets = np.arange(setting.targets)
    draws = np.arange(setting.draws)

    def ours(mixed: bool = False) -> np.ndarray:
        uniforms = stream_uniforms(0, setting.name, targets, draws, setting.length)
        mixer = mixing(setting) if mixed else None
        return decode(model, condition, uniforms, end=END, mixer=mixer).tokens

    def theirs(make: Signals, batch: int) -> np.ndarray:
        torch.manual_seed(0)
        parts = []
        for low in range(0, setting.targets, batch):
            rows = torch.arange(low, min(low + batch, setting.targets)).repeat_interleave(setting.draws)
            parts.append(peer.generate(make(rows), len(rows), setting.length))
        return np.concatenate(parts)

    runs: dict[str, Callable[[], np.ndarray]] = {"inversescope": ours}
    batch = {"inversescope": setting.targets}
    for name, make in signals.items():
        tried = {str(size): (lambda size=size, make=make: theirs(make, size)) for size in setting.batches}
        if len(tried) > 1:
            seconds = fastest(tried, 1)
            batch[name] = int(min(seconds, key=lambda size: seconds[size]))
        else:
            batch[name] = setting.batches[0]
        runs[name] = tried[str(batch[name])]
    if setting.name == "embedded":
        runs["inversescope, cache mixing"], batch["inversescope, cache mixing"] = (
            (lambda: ours(True)),
            setting.targets,
        )

    tokens = {name: count_tokens(run()) for name, run in runs.items()}
    seconds = fastest(runs, setting.repeats)
    speed = {name: tokens[name] / seconds[name] for name in runs}
    best_peer = max(speed[name] for name in signals)
    return [
        {
            "generator": setting.name,
            "method": name,
            "targets": setting.targets,
            "draws": setting.draws,
            "max_tokens": setting.length,
            "targets_a_batch": batch[name],
            "tokens": tokens[name],
            "tokens_per_s": speed[name],
            # Of ours over the faster way to use `generate`; of `generate` nothing: show.py reads the first value.
            "speed_ratio": speed[name] / best_peer if name.startswith("inversescope") else None,
            "largest_log_probability_difference": difference.get(name),
        }
        for name in runs
    ]


def count_tokens(tokens: np.ndarray) -> int:
    """Drawn tokens of sequences (..., T), each up to its first end token and with it."""
    end = tokens == END
    return int(np.where(end.any(-1), end.argmax(-1) + 1, tokens.shape[-1]).sum())


def make_generator(setting: Setting) -> tuple[InverseScope, Condition]:
    """A generator with random weights, and random activations."""
    torch.manual_seed(0)
    shape = GeneratorShape(
        backbone=setting.backbone,
        sites={"L0H0": setting.site_width},
        scales={"L0H0": 1.0},
        n_heads=32,
        d_head=setting.d_head,
        d_condition=setting.d_condition,
        site_map_blocks=setting.site_map_blocks,
    )
    model = InverseScope(shape).eval().requires_grad_(False)
    for layer in model.control:
        layer.value.weight.normal_(std=0.02)
    return model, Condition({"L0H0": torch.randn(setting.targets, setting.site_width)})


class Peer:
    """The backbone as a `GPT2LMHeadModel` that adds a control signal after each attention's residual."""

    def __init__(self, model: InverseScope) -> None:
        self.hf = to_hf(model.backbone).eval().requires_grad_(False)
        self.hf.generation_config.pad_token_id = END
        self.hf.generation_config.eos_token_id = END
        self.hf.generation_config.bos_token_id = END
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
        start = torch.full((rows, 1), END)
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
        return nn.functional.pad(drawn, (0, length - drawn.shape[1]), value=END).numpy()


def folded_signals(model: InverseScope, condition: Condition) -> Signals:
    """Control layers folded as ours, once an activation, copied to each of its draws."""

    def make(rows: Tensor) -> Signal:
        with torch.inference_mode():
            folded: Folded = model.fold(select(condition, rows.unique(sorted=True)))
            return model.controller(folded.rows(rows - rows.min()))

    return make


def unfolded_signals(model: InverseScope, condition: Condition) -> Signals:
    """Control layers as the paper writes them: q = Q h + q0 a token; k and v once an activation; sum of tanh(<q, k>) v."""

    def make(rows: Tensor) -> Signal:
        with torch.inference_mode():
            c = model.encode(select(condition, rows.unique(sorted=True)))
            at = rows - rows.min()
            keys = [layer.key(c).view(len(c), layer.n_heads, layer.d_head)[at] for layer in model.control]
            values = [layer.value(c).view(len(c), layer.n_heads, -1)[at] for layer in model.control]

        def signal(index: int, h: Tensor) -> Tensor:
            layer = model.control[index]
            q = layer.query(layer.norm(h)).unflatten(-1, (layer.n_heads, layer.d_head))
            scores = torch.einsum("bthk,bhk->bth", q, keys[index]) * layer.d_head**-0.5
            return torch.bmm(torch.tanh(scores), values[index])

        return signal

    return make


def select(condition: Condition, rows: Tensor) -> Condition:
    """Some of the activations of a condition on one site."""
    return Condition({label: z[rows] for label, z in condition.z.items()})


def check_equal(
    model: InverseScope, condition: Condition, peer: Peer, make: Signals, setting: Setting
) -> float:
    """Largest difference of log-probabilities between ours and a peer's, along sequences that ours drew.

    Raises:
        AssertionError: they are not the same distribution, or the activation makes no difference to it.
    """
    draws = 2
    some = torch.arange(min(4, setting.targets))
    uniforms = stream_uniforms(1, setting.name, some.numpy(), np.arange(draws), setting.length)
    drawn = torch.from_numpy(decode(model, select(condition, some), uniforms, end=END).tokens).flatten(0, 1)
    tokens = nn.functional.pad(drawn[:, :-1], (1, 0), value=END)
    rows = some.repeat_interleave(draws)
    with torch.inference_mode():
        ours = model.log_probabilities(tokens, model.fold(select(condition, rows)))
        plain = torch.log_softmax(model.backbone(tokens), -1)
    difference = float((peer.log_probabilities(make(rows), tokens) - ours).abs().max())
    assert difference < TOLERANCE, f"log-probabilities differ by {difference}"
    assert float((ours - plain).abs().max()) > 100 * TOLERANCE, "the control signal makes no difference"
    return difference


def mixing(setting: Setting) -> Mixer:
    """Cached neighbours of each target, 256 random sequences each: what cache mixing costs beside plain decoding."""
    rng = np.random.default_rng(0)
    sequences = rng.integers(1, setting.backbone.vocab_size, (setting.targets, 256, setting.length))
    sequences[..., -1] = END
    return Mixer(list(sequences), setting.backbone.vocab_size, 5.0)


if __name__ == "__main__":
    sys.exit(main())
