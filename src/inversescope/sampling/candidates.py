"""Candidates of a generator: drawn, their activations computed again, accepted or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inversescope.config import Config
from inversescope.config.methods import DecodingConfig
from inversescope.context import Context
from inversescope.generator.base import ConditionalGenerator
from inversescope.generator.condition import Condition, Prompts, decode_texts, make_condition
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import support_radius
from inversescope.kernel.neighbours import Cache
from inversescope.kernel.noise import gaussian_noise
from inversescope.sampling.decode import Draws, decode
from inversescope.sampling.log_q import log_prob_rows, log_q_marginal
from inversescope.sampling.mixing import MAX_MIXED, Mixer, make_mixer
from inversescope.sampling.recompute import Recomputer
from inversescope.sites import Site
from inversescope.streams import stream, stream_uniforms
from inversescope.tasks.automata import Automaton

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Where each draw has an activation of its own, q is a mixture over them. It is computed for so many accepted candidates of each
# target, over so many of the target's activations.
MARGINAL_SAMPLES, MARGINAL_ACTIVATIONS = 2, 16
#: Columns of the table of cached prompts' log q; rows are of the train split.
LOG_Q = {"target_id": "int32", "row": "int64", "logq": "float64", "epsilon": "float64"}
DENSE = 100  # targets with more cached neighbours are dense: `combined` needs no log q of them, and gains little by it


@dataclass(frozen=True)
class Pool:
    """The cached prompts that a variant may use, at one site.

    Attributes:
        rows: (N,) of the train split.
    """

    rows: np.ndarray
    prompts: Prompts
    cache: Cache


@dataclass
class Block:
    """What was drawn for some targets at a time.

    Attributes:
        rows: (targets,).
        condition: what the generator was told, of each target or of each draw.
        temperature: of all draws, or of each (targets x draws,).
    """

    rows: np.ndarray
    drawn: Draws
    condition: Condition
    temperature: float | np.ndarray


@dataclass(frozen=True)
class Sampler:
    """A variant's generator at one site, and the targets z (targets, d) that it is asked about."""

    context: Context
    variant: str
    model: ConditionalGenerator
    tokenizer: PreTrainedTokenizerFast
    site: Site
    z: np.ndarray
    pool: Pool

    @cached_property
    def grammar(self) -> Automaton:
        """The prior's grammar over the generator's tokens."""
        return self.context.task.grammar(self.tokenizer)

    @property
    def end(self) -> int:
        """Token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def own(self) -> float:
        """The epsilon of the variant's own bandwidth at the site."""
        return self.context.epsilon(self.context.config.bandwidth_of(self.variant), self.site.label)

    def condition(self, epsilon: float, z: np.ndarray) -> Condition:
        """The generator's inputs for activations (B, d)."""
        kind, pool = self.context.config.kernel.kind, self.pool
        return make_condition(self.model, self.site.label, z, epsilon, pool.cache, pool.prompts, kind)

    def neighbours(self, epsilon: float, z: np.ndarray) -> Mixer | None:
        """What the generator attends to for activations (B, d), if it attends to neighbours."""
        shape = self.model.shape
        if not shape.neighbour_logits and not shape.words:
            return None
        radius = support_radius(epsilon, self.context.config.kernel.kind)
        return self.mixer(radius, z, 1.0, shape.n_condition)

    def mixer(self, radius: float, z: np.ndarray, alpha: float, limit: int = MAX_MIXED) -> Mixer:
        """Cached neighbours of activations (B, d)."""
        vocabulary = self.model.shape.backbone.vocab_size
        return make_mixer(self.pool.cache, self.pool.prompts, z, radius, vocabulary, alpha, limit)

    def draw(self, epsilon: float, decoding: str, rows: np.ndarray, draws: np.ndarray) -> Block:
        """Draws of consecutive numbers for some targets."""
        config = self.context.config
        rule, length = config.sampling.rule(decoding), self.pool.prompts.tokens.shape[1] - 1
        name = f"{self.site.label}/{self.variant}/{decoding}/{epsilon}"
        uniforms = stream_uniforms(config.seed, name, rows, draws, length)
        z, temperature = self.told(epsilon, decoding, rows, draws)
        condition = self.condition(epsilon, z)
        drawn = decode(
            self.model,
            condition,
            uniforms.reshape(len(z), -1, length),
            end=self.end,
            temperature=temperature,
            mixer=self.mixer(epsilon, z, config.sampling.mixing_alpha) if rule.mixed else None,
            grammar=self.grammar if rule.masked else None,
            neighbours=self.neighbours(epsilon, z),
        )
        return Block(rows, drawn, condition, temperature)

    def told(
        self, epsilon: float, decoding: str, rows: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, float | np.ndarray]:
        """Activations that the generator is told, one a target or one a draw, and the temperature of all or of each."""
        config = self.context.config
        rule = config.sampling.rule(decoding)
        if decoding == "noised":
            # The activation itself is moved (Figure 8).
            distance, moved = distance_of(config.kernel.distance), []
            for row in rows:
                rng = stream(config.seed, "noised", self.site.label, self.variant, int(row), int(draws[0]))
                copies = np.repeat(self.z[[row]], len(draws), 0)
                moved.append(distance.perturb(copies, config.figures.extra_noise, rng, norm_band=0.01))
            return np.concatenate(moved).astype(np.float32), rule.temperature[0]
        if rule.varies:
            temperature, noise = schedule(rule, draws)
            return self.noised(epsilon, decoding, rows, draws, noise), np.tile(temperature, len(rows))
        return self.z[rows], rule.temperature[0]

    def noised(
        self, epsilon: float, decoding: str, rows: np.ndarray, draws: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """Activations (rows x draws, d) with Gaussian noise (paper, D.1.3): `noise` (draws,) in multiples of epsilon.

        It lives where the variant's noise lives; a generator that looks for neighbours needs it in the activation's own space.
        """
        config, d, shape = self.context.config, self.z.shape[1], self.model.shape
        distance, parts = distance_of(config.kernel.distance), []
        wide = config.variant(self.variant).noise_space == "model" and not shape.d_embedding
        width = shape.sites[self.site.label] if wide else d
        for row in rows:
            rng = stream(
                config.seed,
                "sampling noise",
                self.site.label,
                self.variant,
                decoding,
                int(row),
                int(draws[0]),
            )
            copies = np.zeros((len(draws), width))
            copies[:, :d] = self.z[row]
            parts.append(copies + gaussian_noise(noise * epsilon * distance.size(copies), width, rng))
        return np.concatenate(parts).astype(np.float32)

    def marginal(self, block: Block, accepted: np.ndarray, masked: bool) -> np.ndarray:
        """log q (rows x draws,) of the first accepted candidates of each target without their activations; NaN for others.

        Args:
            accepted: (rows, draws) bool.
        """
        temperature = block.temperature
        targets, draws = accepted.shape
        result = np.full(targets * draws, np.nan)
        rank = np.cumsum(accepted, 1)
        chosen = np.flatnonzero(accepted & (rank <= MARGINAL_SAMPLES))
        if not chosen.size:
            return result
        owner, draw = np.divmod(chosen, draws)
        count = min(MARGINAL_ACTIVATIONS, draws)
        # As many steps of a schedule as possible: draws that follow each other take them in turn.
        companions = owner[:, None] * draws + (draw[:, None] + np.arange(count)) % draws
        folded = self.model.fold(block.condition)
        tokens = block.drawn.tokens.reshape(targets * draws, -1)
        size = max(1, self.context.config.sampling.batch // count)
        for low in range(0, len(chosen), size):
            part = slice(low, low + size)
            result[chosen[part]] = log_q_marginal(
                self.model,
                folded,
                tokens[chosen[part]],
                companions[part],
                end=self.end,
                temperature=temperature if isinstance(temperature, np.ndarray) else None,
                grammar=self.grammar if masked else None,
            )
        return result

    def cached_log_q(self, epsilon: float) -> pd.DataFrame:
        """log q of the cached neighbours of each sparse target (at most `DENSE`), under plain decoding: columns `LOG_Q`."""
        config, cache = self.context.config, self.pool.cache
        near = cache.search(cache.prepare(self.z), support_radius(epsilon, config.kernel.kind))
        owner = np.repeat(np.arange(len(self.z)), near.counts)
        sparse = near.counts[owner] <= DENSE
        owner, rows = owner[sparse], near.rows[sparse]
        condition, neighbours = self.condition(epsilon, self.z), self.neighbours(epsilon, self.z)
        values = log_prob_rows(
            self.model, condition, owner, self.pool.prompts, rows, config.sampling.batch, neighbours
        )
        columns = (owner, self.pool.rows[rows], values, np.full(len(rows), epsilon))
        return pd.DataFrame(dict(zip(LOG_Q, columns, strict=True))).astype(LOG_Q)


def schedule(rule: DecodingConfig, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Temperature and noise (n,) each of draws (n,) under a decoding setting: all combinations in turn, temperatures first."""
    temperature, noise = np.asarray(rule.temperature), np.asarray(rule.noise)
    rest, first = np.divmod(draws, len(temperature))
    return temperature[first], noise[rest % len(noise)]


def draws_of(config: Config, variant: str, own: bool, decoding: str) -> tuple[int, int]:
    """Draws of a target in a round, and in all rounds at most, at the variant's own bandwidth or another one."""
    sampling, budget = config.sampling, config.scaled(config.sampling.max_candidates)
    if decoding == "noised":
        count = config.scaled(config.figures.noised_draws)
        return count, count
    if variant in config.study_variants:
        count = sampling.candidates_study
    elif own:
        count = sampling.candidates
    else:
        count = sampling.candidates_elsewhere
    return min(config.scaled(count), budget), budget


def candidates(sampler: Sampler, recomputer: Recomputer, epsilon: float, decoding: str) -> pd.DataFrame:
    """Draw in rounds: a target stops when it has enough accepted samples or its budget is spent."""
    sampling = sampler.context.config.sampling
    own = epsilon == sampler.own
    first, budget = draws_of(sampler.context.config, sampler.variant, own, decoding)
    waiting = np.arange(len(sampler.z))
    done = 0
    frames = []
    while waiting.size and done < budget:
        draws = np.arange(done, min(done + first, budget))
        size = max(1, sampling.batch // len(draws))
        blocks = [
            sampler.draw(epsilon, decoding, waiting[low : low + size], draws)
            for low in range(0, len(waiting), size)
        ]
        frames.append(judge(sampler, recomputer, epsilon, decoding, blocks, draws))
        done += len(draws)
        if not sampling.min_accepted:
            break
        accepted = pd.concat(frames).groupby("target_id")["accepted"].sum()
        waiting = waiting[accepted.reindex(waiting).to_numpy() < sampling.min_accepted]
    return pd.concat(frames, ignore_index=True).sort_values(
        ["target_id", "draw"], kind="stable", ignore_index=True
    )


def judge(
    sampler: Sampler,
    recomputer: Recomputer,
    epsilon: float,
    decoding: str,
    blocks: Sequence[Block],
    draws: np.ndarray,
) -> pd.DataFrame:
    """One round's candidates as rows of the table, with the distance of what the target computes from each."""
    task, config = sampler.context.task, sampler.context.config
    rows = np.concatenate([block.rows for block in blocks])
    tokens = np.concatenate([block.drawn.tokens for block in blocks])
    finished, log_q = (
        np.concatenate([getattr(block.drawn, name).ravel() for block in blocks])
        for name in ("finished", "log_q")
    )
    texts = decode_texts(sampler.tokenizer, tokens.reshape(-1, tokens.shape[-1]), sampler.end)
    index = np.where(finished, task.parse(texts), -1)
    owner = np.repeat(rows, len(draws))
    d = recomputer.distances(index, owner, sampler.site)
    accepted = np.nan_to_num(d, nan=np.inf) < support_radius(epsilon, config.kernel.kind)
    frame = pd.DataFrame(
        {
            "target_id": owner.astype(np.int32),
            "draw": np.tile(draws, len(rows)).astype(np.int32),
            "text": texts,
            "prompt_id": index,
            "parsed": index >= 0,
            "distance": d.astype(np.float32),
            "accepted": accepted,
            "logq": log_q,
        }
    )
    rule, settings = config.sampling.rule(decoding), config.variant(sampler.variant).settings
    if settings:
        frame["logq_marginal"] = log_q
        if decoding in settings and rule.varies:
            ends = np.cumsum([len(block.rows) for block in blocks])
            parts = np.split(accepted.reshape(len(rows), -1), ends[:-1])
            frame["logq_marginal"] = np.concatenate(
                [
                    sampler.marginal(block, part, rule.masked)
                    for block, part in zip(blocks, parts, strict=True)
                ]
            )
    for feature, values in task.features_of(index).items():
        names = np.array([*task.feature_values[feature], ""], dtype=object)
        frame[f"feature_{feature}"] = pd.Categorical(names[values])
    temperature = [np.broadcast_to(b.temperature, len(b.rows) * len(draws)) for b in blocks]
    return frame.assign(epsilon=epsilon, decoding=decoding, temperature=np.concatenate(temperature))
