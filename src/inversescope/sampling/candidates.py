"""Candidates of a generator: drawn, their activations computed again, accepted or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from inversescope.activations.positions import capture_prompts
from inversescope.config import DecodingConfig
from inversescope.context import Context
from inversescope.generator.base import ConditionalGenerator
from inversescope.generator.condition import Condition, Prompts, decode_texts, make_condition
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import support_radius
from inversescope.kernel.neighbours import Cache
from inversescope.kernel.noise import gaussian_noise
from inversescope.sampling.decode import Draws, decode
from inversescope.sampling.log_q import log_prob_rows, log_q_marginal
from inversescope.sampling.mixing import Mixer, make_mixer
from inversescope.sites import Site
from inversescope.streams import stream, stream_uniforms
from inversescope.targets.models import Target
from inversescope.tasks.automata import Automaton

# Where each draw has an activation of its own, q is a mixture over them. It is computed for so many accepted candidates of each
# target, over so many of the target's activations.
MARGINAL_SAMPLES, MARGINAL_ACTIVATIONS = 2, 16
DENSE = 256  # targets with more cached neighbours are dense: `combined` needs no log q of them


class Recomputer:
    """Distances of texts to target activations at sites; each distinct prompt is run once, up to the last site's layer.

    Args:
        z: site -> (targets, d), what distances are taken to.
    """

    def __init__(self, context: Context, target: Target, z: dict[Site, np.ndarray]) -> None:
        self.context, self.target, self.z = context, target, z
        self.distance = distance_of(context.config.kernel.distance)
        self.known: dict[int, int] = {}
        self.rows: dict[Site, np.ndarray] = {}

    def activations(self, index: np.ndarray, site: Site) -> np.ndarray:
        """Activations (n, d), at position `any` (n, P, d), of prompts of the prior at a site."""
        new = np.array(sorted(set(index.tolist()) - self.known.keys()), np.int64)
        if new.size:
            captured = capture_prompts(self.context.task, self.target, new, list(self.z))
            numbers = range(len(self.known), len(self.known) + len(new))
            self.known.update(zip(new.tolist(), numbers, strict=True))
            for one in self.z:
                known = [self.rows[one]] if one in self.rows else []
                self.rows[one] = np.concatenate([*known, captured[one.label]])
        return self.rows[site][[self.known[i] for i in index.tolist()]]

    def distances(self, index: np.ndarray, owner: np.ndarray, site: Site) -> np.ndarray:
        """Distance (n,) of prompt `index` (n,), -1 = not in the prior, to the activation of target `owner` (n,); NaN for -1."""
        result = np.full(len(index), np.nan)
        good = np.flatnonzero(index >= 0)
        if good.size:
            found = self.activations(index[good], site)
            result[good] = self.distance.paired(self.z[site][owner[good]], found)
        return result


def schedule(rule: DecodingConfig, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Temperature and noise (n,) each of draws (n,) under a decoding setting: all combinations in turn, temperatures first."""
    temperature, noise = np.asarray(rule.temperature), np.asarray(rule.noise)
    rest, first = np.divmod(draws, len(temperature))
    return temperature[first], noise[rest % len(noise)]


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


class Run:
    """Candidates of one variant at one site."""

    def __init__(
        self,
        context: Context,
        name: str,
        model: ConditionalGenerator,
        site: Site,
        z: np.ndarray,
        cache: Cache,
        prompts: Prompts,
        cache_rows: np.ndarray,
        recomputer: Recomputer,
        tokenizer: object,
        end: int,
    ) -> None:
        self.context, self.name, self.model, self.site, self.z = context, name, model, site, z
        self.cache, self.prompts, self.cache_rows, self.recomputer = cache, prompts, cache_rows, recomputer
        self.tokenizer, self.end = tokenizer, end
        self.grammar: Automaton | None = None

    def condition(self, epsilon: float, z: np.ndarray) -> Condition:
        """The generator's inputs for activations (B, d)."""
        kind = self.context.config.kernel.kind
        return make_condition(self.model, self.site.label, z, epsilon, self.cache, self.prompts, kind)

    def neighbours(self, epsilon: float, z: np.ndarray) -> Mixer | None:
        """What the generator attends to, if it attends to neighbours; as in `condition`."""
        if not self.model.shape.neighbour_logits and not self.model.shape.words:
            return None
        vocabulary = self.model.shape.backbone.vocab_size
        radius = support_radius(epsilon, self.context.config.kernel.kind)
        limit = self.model.shape.n_condition
        return make_mixer(self.cache, self.prompts, z, radius, vocabulary, 1.0, limit)

    def candidates(self, epsilon: float, decoding: str) -> pd.DataFrame:
        """Draw in rounds: a target stops when it has enough accepted samples or its budget is spent."""
        config = self.context.config
        sampling = config.sampling
        budget = config.scaled(sampling.max_candidates)
        if self.name in config.study_variants:
            per_target = sampling.candidates_study
        else:
            headline = epsilon == (config.variant(self.name).epsilon or config.kernel.epsilon)
            per_target = sampling.candidates if headline else sampling.candidates_elsewhere
        first = min(config.scaled(per_target), budget)
        if decoding == "noised":
            first = budget = config.scaled(config.figures.noised_draws)
        waiting = np.arange(len(self.z))
        done = 0
        frames = []
        while waiting.size and done < budget:
            count = first if done == 0 else min(first, budget - done)
            draws, block = np.arange(done, done + count), max(1, sampling.batch // count)
            blocks = [
                self._draw(epsilon, decoding, waiting[low : low + block], draws)
                for low in range(0, len(waiting), block)
            ]
            # The target reads all blocks' prompts together: its activations' last bits depend on the prompts read with them.
            frames.append(self._judge(epsilon, decoding, blocks, draws))
            done += count
            if not sampling.min_accepted:
                break
            accepted = pd.concat(frames).groupby("target_id")["accepted"].sum()
            waiting = waiting[accepted.reindex(waiting).to_numpy() < sampling.min_accepted]
        return pd.concat(frames, ignore_index=True).sort_values(
            ["target_id", "draw"], kind="stable", ignore_index=True
        )

    def _draw(self, epsilon: float, decoding: str, rows: np.ndarray, draws: np.ndarray) -> Block:
        config, task = self.context.config, self.context.task
        sampling, kernel = config.sampling, config.kernel
        length = self.prompts.tokens.shape[1] - 1  # text and end token
        stream_name = f"{self.site.label}/{self.name}/{decoding}/{epsilon}"
        uniforms = stream_uniforms(config.seed, stream_name, rows, draws, length)
        mixer = None
        rule = sampling.rule(decoding)
        temperature: float | np.ndarray = rule.temperature[0]
        wide: np.ndarray | None = None  # an activation a draw
        if rule.mixed:
            vocabulary = self.model.shape.backbone.vocab_size
            mixer = make_mixer(
                self.cache, self.prompts, self.z[rows], epsilon, vocabulary, sampling.mixing_alpha
            )
        if rule.masked and self.grammar is None:
            self.grammar = task.grammar(self.tokenizer)  # type: ignore[arg-type]
        if decoding == "noised":
            # The activation itself is moved (Figure 8).
            moved = []
            for row in rows:
                rng = stream(config.seed, "noised", self.site.label, self.name, int(row), int(draws[0]))
                copies = np.repeat(self.z[[row]], len(draws), 0)
                distance = distance_of(kernel.distance)
                moved.append(distance.perturb(copies, config.figures.extra_noise, rng, "hard", 0.01))
            wide = np.concatenate(moved).astype(np.float32)
        elif rule.varies:
            of_draw, noise = schedule(rule, draws)
            wide = self.noised(epsilon, decoding, rows, draws, noise)
            temperature = np.tile(of_draw, len(rows))
        z = self.z[rows]
        if wide is not None:
            z, uniforms = wide, uniforms.reshape(-1, 1, length)
        condition, neighbours = self.condition(epsilon, z), self.neighbours(epsilon, z)
        drawn = decode(
            self.model,
            condition,
            uniforms,
            end=self.end,
            temperature=temperature,
            mixer=mixer,
            grammar=self.grammar if rule.masked else None,
            neighbours=neighbours,
        )
        return Block(rows, drawn, condition, temperature)

    def _judge(
        self, epsilon: float, decoding: str, blocks: Sequence[Block], draws: np.ndarray
    ) -> pd.DataFrame:
        """Candidates of blocks as rows of the table, with the distance of what the target computes from each."""
        task, kernel = self.context.task, self.context.config.kernel
        rule = self.context.config.sampling.rule(decoding)
        rows = np.concatenate([block.rows for block in blocks])
        tokens, finished, log_q = (
            np.concatenate(
                [getattr(block.drawn, name).reshape(len(block.rows) * len(draws), -1) for block in blocks]
            )
            for name in ("tokens", "finished", "log_q")
        )
        texts = decode_texts(self.tokenizer, tokens, self.end)
        index = np.where(finished[:, 0], task.parse(texts), -1)
        owner = np.repeat(rows, len(draws))
        d = self.recomputer.distances(index, owner, self.site)
        accepted = np.nan_to_num(d, nan=np.inf) < support_radius(epsilon, kernel.kind)
        frame = pd.DataFrame(
            {
                "target_id": owner.astype(np.int32),
                "draw": np.tile(draws, len(rows)).astype(np.int32),
                "text": texts,
                "prompt_id": index,
                "parsed": index >= 0,
                "distance": d.astype(np.float32),
                "accepted": accepted,
                "logq": log_q[:, 0],
            }
        )
        if settings := self.context.config.variant(self.name).settings:
            marginal = log_q[:, 0]
            if decoding in settings and rule.varies:
                parts = np.split(
                    accepted.reshape(len(rows), -1), np.cumsum([len(block.rows) for block in blocks])[:-1]
                )
                marginal = np.concatenate(
                    [self.marginal(block, part, rule) for block, part in zip(blocks, parts, strict=True)]
                )
            frame["logq_marginal"] = marginal
        for feature, values in task.features_of(index).items():
            names = np.array([*task.feature_values[feature], ""], dtype=object)
            frame[f"feature_{feature}"] = pd.Categorical(names[values])
        shown = np.concatenate(
            [np.broadcast_to(block.temperature, len(block.rows) * len(draws)) for block in blocks]
        )
        return frame.assign(epsilon=epsilon, decoding=decoding, temperature=shown)

    def noised(
        self, epsilon: float, decoding: str, rows: np.ndarray, draws: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """Activations (rows x draws, d) with Gaussian noise (paper, D.1.3): `noise` (draws,) in multiples of epsilon.

        It lives where the variant's noise lives; a generator that looks for neighbours needs it in the activation's own space.
        """
        config, d = self.context.config, self.z.shape[1]
        shape, space = self.model.shape, config.variant(self.name).noise_space
        width = shape.sites[self.site.label] if space == "model" and not shape.d_embedding else d
        parts = []
        distance = distance_of(config.kernel.distance)
        for row in rows:
            rng = stream(
                config.seed, "sampling noise", self.site.label, self.name, decoding, int(row), int(draws[0])
            )
            copies = np.zeros((len(draws), width))
            copies[:, :d] = self.z[row]
            parts.append(copies + gaussian_noise(noise * epsilon * distance.size(copies), width, rng))
        return np.concatenate(parts).astype(np.float32)

    def marginal(self, block: Block, accepted: np.ndarray, rule: DecodingConfig) -> np.ndarray:
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
                grammar=self.grammar if rule.masked else None,
            )
        return result

    def cached_log_q(self, epsilon: float, targets: int) -> pd.DataFrame:
        """log q of the cached neighbours of each sparse target (at most `DENSE`) of the first ones, under plain decoding."""
        owner, rows, values = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        if targets:
            z = self.z[:targets]
            near = self.cache.search(
                self.cache.prepare(z), support_radius(epsilon, self.context.config.kernel.kind)
            )
            owner = np.repeat(np.arange(len(z)), near.counts)
            sparse = near.counts[owner] <= DENSE
            owner, rows = owner[sparse], near.rows[sparse]
            values = log_prob_rows(
                self.model,
                self.condition(epsilon, z),
                owner,
                self.prompts,
                rows,
                self.context.config.sampling.batch,
                self.neighbours(epsilon, z),
            )
        return pd.DataFrame(
            {
                "target_id": owner.astype(np.int32),
                "row": self.cache_rows[rows],
                "logq": values,
                "epsilon": epsilon,
            }
        )
