"""Training throughput of JumpReLU autoencoders beside dictionary-learning's, in one run on one thread.

Both train with JumpReLU, a penalty on active features and unit decoder rows, on the same Gaussian activations in batches of the
same size: the shape of the embedded RAVEL study, and 512 numbers to 4,096 features. A step is everything: batch, loss, gradients,
optimiser, renormalisation. dictionary-learning is an optional peer (`pip install dictionary-learning`); SAELens is none, as it
needs another major version of TransformerLens than the other benchmarks.

    python -m bench.sae --out results/bench/sae.csv
"""

from __future__ import annotations

import sys
from typing import Any

from bench.tables import fastest, finish, options

# isort: split
import numpy as np

from inversescope.config.methods import SaeConfig
from inversescope.studies.ravel.sae_training import train_sae

#: Width of the activations, features, activations a step, steps, turns.
SHAPES = ((64, 256, 1024, 40, 3), (512, 4096, 2048, 2, 1))


def main() -> int:
    """Measure, print the table, and write it where asked."""
    arguments = options(__doc__.splitlines()[0], "sae").parse_args()
    import torch

    torch.set_num_threads(1)
    peer = find_peer()
    rows: list[dict[str, object]] = []
    for d, width, batch, steps, turns in SHAPES:
        z = np.random.default_rng(0).standard_normal((4 * batch, d)).astype(np.float32)
        config = SaeConfig(width=width, steps=steps, batch_size=batch)

        def own(config: SaeConfig = config, z: np.ndarray = z) -> None:
            size = config.batch_size
            scale = float(np.sqrt(z.shape[1]))
            train_sae(
                lambda step: z[step % 4 * size : (step % 4 + 1) * size],
                z.shape[1],
                scale,
                config,
                1e-3,
                0,
                "sae",
                lambda line: None,
            )

        runs: dict[str, Any] = {"inversescope": own}
        if peer is not None:
            runs["dictionary-learning"] = lambda peer=peer, config=config, z=z: train_peer(peer, config, z)
        for run in runs.values():
            run()  # what is done once, outside of the timing
        seconds = fastest(runs, turns)
        for name, taken in seconds.items():
            rows.append(
                {
                    "d": d,
                    "width": width,
                    "batch": batch,
                    "method": name,
                    "activations_per_second": steps * batch / taken,
                    "speed_ratio": seconds["dictionary-learning"] / taken if peer is not None else np.nan,
                }
            )
    finish(rows, arguments.out)
    return 0


def find_peer() -> Any:
    """dictionary-learning's trainer, or None if it is not installed."""
    try:
        from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    except ImportError as error:
        print(f"dictionary-learning is not installed ({error})")
        return None
    return JumpReluTrainer


def train_peer(trainer: Any, config: SaeConfig, z: np.ndarray) -> None:
    """As many steps of the peer's trainer."""
    import torch

    run = trainer(
        steps=config.steps,
        activation_dim=z.shape[1],
        dict_size=config.width,
        layer=0,
        lm_name="none",
        seed=0,
        lr=config.learning_rate,
        bandwidth=config.bandwidth,
        warmup_steps=1,
        sparsity_warmup_steps=1,
    )
    x = torch.from_numpy(z / np.float32(np.sqrt(z.shape[1])))
    for step in range(config.steps):
        first = step % 4 * config.batch_size
        run.update(step, x[first : first + config.batch_size])


if __name__ == "__main__":
    sys.exit(main())
