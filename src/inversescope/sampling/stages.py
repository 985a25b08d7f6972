"""Stages `sample_prompts` and `run_mcmc`: candidates, re-computed activations, acceptance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from inversescope.activations.positions import capture_prompts
from inversescope.config import DecodingConfig
from inversescope.context import Context, echo, need, stream
from inversescope.errors import InputError
from inversescope.generator.base import Condition, ConditionalGenerator
from inversescope.generator.pairs import Prompts
from inversescope.generator.stages import backbone_tokenizer, cached_prompts, decode_texts, load_generator
from inversescope.kernel.kernel import (
    gaussian_noise,
    kernel_values,
    paired_distances,
    perturb,
    support_radius,
)
from inversescope.kernel.neighbours import Cache
from inversescope.ops import ENOUGH
from inversescope.sampling.decode import (
    Draws,
    Mixer,
    decode,
    log_prob_rows,
    log_q_marginal,
    make_condition,
    make_mixer,
    stream_uniforms,
)
from inversescope.sites import Site
from inversescope.store import write_json, write_table
from inversescope.targets.models import Target, load_target
from inversescope.targets.tokenizers import tokenizer_hash
from inversescope.tasks.base import Automaton

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
        self.distance = context.config.kernel.distance
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
            result[good] = paired_distances(self.z[site][owner[good]], found, self.distance)
        return result


def sample_prompts(context: Context, generator: str, variants: Sequence[str], sites: Sequence[str]) -> None:
    """Draw candidates for every target at each site from each variant, re-compute their activations, decide acceptance.

    Writes, a variant and site: results/.../samples/{generator}/{variant}/{site}.parquet (raw candidates, nothing dropped) and
    {site}.cache.parquet (log q of the cached neighbours of sparse targets, for the combined estimator).
    """
    target = load_target(need(context.target_dir / "target.json", "select_target / fetch_target").parent)
    tokenizer = backbone_tokenizer(context)
    models = {name: load_generator(context, generator, name) for name in variants}
    for name, (_, meta) in models.items():
        if meta["tokenizer_hash"] != tokenizer_hash(tokenizer):
            raise InputError(f"generator {name} was trained with another tokenizer", "rerun train_generator")
    rows_of = {name: context.cache_rows(context.config.variant(name)) for name in variants}
    prompts_of: dict[bytes, Prompts] = {}
    for rows in rows_of.values():
        if rows.tobytes() not in prompts_of:
            prompts_of[rows.tobytes()] = cached_prompts(context, tokenizer, rows)
    end = int(tokenizer.eos_token_id)
    for label in sites:
        site = context.site(label)
        z = np.array(context.activations("test", label))
        z_train = context.activations("train", label)
        recomputer = Recomputer(context, target, {site: z})
        caches: dict[bytes, Cache] = {}
        for name, (model, _) in models.items():
            if label not in model.shape.sites:
                continue
            rows = rows_of[name]
            key = rows.tobytes()
            if key not in caches:
                caches[key] = Cache(np.array(z_train[rows]), context.config.kernel.distance)
            start = time.monotonic()
            run = _Run(
                context, name, model, site, z, caches[key], prompts_of[key], rows, recomputer, tokenizer, end
            )
            frames, log_qs = [], []
            for epsilon in context.config.epsilons_of(name):
                for decoding in context.config.decodings_of(name, epsilon, site.head is not None):
                    frames.append(run.candidates(epsilon, decoding))
                # The frontier compares generators alone: nobody asks for the q of cached prompts.
                some = len(z) if context.config.variant(name).study != "frontier" else 0
                log_qs.append(run.cached_log_q(epsilon, some))
            frame = pd.concat(frames, ignore_index=True)
            write_table(frame, context.samples_path(generator, name, label))
            write_table(pd.concat(log_qs, ignore_index=True), context.cache_logq_path(generator, name, label))
            seconds = time.monotonic() - start
            write_json(
                {"sample_seconds": round(seconds, 2)},
                context.samples_path(generator, name, label).with_suffix(".json"),
            )
            shown = frame["decoding"] == frame["decoding"].iloc[0]
            rate = 1.0 - frame.loc[shown, "accepted"].mean()
            echo(
                f"sample_prompts {name} {label}: {len(frame)} candidates, refusal {rate:.3f}, {seconds:.1f} s"
            )


def schedule(rule: DecodingConfig, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Temperature and noise (n,) each of draws (n,) under a decoding setting: all combinations in turn, temperatures first."""
    temperature, noise = np.asarray(rule.temperature), np.asarray(rule.noise)
    rest, first = np.divmod(draws, len(temperature))
    return temperature[first], noise[rest % len(noise)]


@dataclass
class _Block:
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


class _Run:
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

    def condition(self, epsilon: float, z: np.ndarray, unit: int = 1) -> Condition:
        """The generator's inputs for activations (B, d), `unit` of them a target."""
        kind = self.context.config.kernel.kind
        return make_condition(self.model, self.site.label, z, epsilon, self.cache, self.prompts, kind, unit)

    def neighbours(self, epsilon: float, z: np.ndarray, unit: int = 1) -> Mixer | None:
        """What the generator attends to, if it attends to neighbours; as in `condition`."""
        if not self.model.shape.neighbour_logits and not self.model.shape.words:
            return None
        vocabulary = self.model.shape.backbone.vocab_size
        radius = support_radius(epsilon, self.context.config.kernel.kind)
        limit = self.model.shape.n_condition
        return make_mixer(self.cache, self.prompts, z, radius, vocabulary, 1.0, limit, unit)

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

    def _draw(self, epsilon: float, decoding: str, rows: np.ndarray, draws: np.ndarray) -> _Block:
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
                moved.append(perturb(copies, config.figures.extra_noise, rng, kernel.distance, "hard", 0.01))
            wide = np.concatenate(moved).astype(np.float32)
        elif rule.varies:
            of_draw, noise = schedule(rule, draws)
            wide = self.noised(epsilon, decoding, rows, draws, noise)
            temperature = np.tile(of_draw, len(rows))
        z, unit, width = self.z[rows], 1, ENOUGH
        if wide is not None:
            z, unit, uniforms = wide, len(draws), uniforms.reshape(-1, 1, length)
            width = 1 if unit > 1 else ENOUGH
        condition, neighbours = self.condition(epsilon, z, unit), self.neighbours(epsilon, z, unit)
        drawn = decode(
            self.model,
            condition,
            uniforms,
            end=self.end,
            temperature=temperature,
            mixer=mixer,
            grammar=self.grammar if rule.masked else None,
            neighbours=neighbours,
            width=width,
        )
        return _Block(rows, drawn, condition, temperature)

    def _judge(
        self, epsilon: float, decoding: str, blocks: Sequence[_Block], draws: np.ndarray
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
        for row in rows:
            rng = stream(
                config.seed, "sampling noise", self.site.label, self.name, decoding, int(row), int(draws[0])
            )
            copies = np.zeros((len(draws), width))
            copies[:, :d] = self.z[row]
            parts.append(copies + gaussian_noise(copies, noise * epsilon, rng, config.kernel.distance))
        return np.concatenate(parts).astype(np.float32)

    def marginal(self, block: _Block, accepted: np.ndarray, rule: DecodingConfig) -> np.ndarray:
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


def run_mcmc(context: Context, sites: Sequence[str]) -> None:
    """Run one swap-move chain a target on the prior, from the target's own prompt, at the headline bandwidth.

    The honest competitor that needs no training: a stated number of target evaluations a chain. Writes
    results/.../mcmc/{site}.parquet with the chain's states: target_id, step, prompt_id, accepted.
    """
    kernel, budget = context.config.kernel, context.config.fcr.mcmc_evaluations
    target = load_target(need(context.target_dir / "target.json", "select_target / fetch_target").parent)
    seeds = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
    places = [context.site(label) for label in sites]
    recomputer = Recomputer(
        context, target, {site: np.array(context.activations("test", site.label)) for site in places}
    )
    owner = np.arange(len(seeds))
    rngs = {site: stream(context.config.seed, "run_mcmc", site.label) for site in places}

    def weights(prompts: dict[Site, np.ndarray]) -> dict[Site, np.ndarray]:
        # All chains' prompts in one forward, read at all sites.
        recomputer.activations(np.unique(np.concatenate(list(prompts.values()))), places[0])
        return {
            site: kernel_values(recomputer.distances(index, owner, site), kernel.epsilon, kernel.kind)
            for site, index in prompts.items()
        }

    state = dict.fromkeys(places, seeds)
    weight = weights(state)
    rows: dict[Site, list[pd.DataFrame]] = {site: [] for site in places}
    steps = context.config.scaled(budget) if budget else 0
    for step in range(steps):
        proposal = {site: context.task.moves(state[site], rngs[site]) for site in places}
        new = weights(proposal)
        for site in places:
            # Moves are symmetric: Metropolis on the kernel and, where prompts are not all alike, the prior.
            task = context.task
            ratio = np.exp(task.log_prior(proposal[site]) - task.log_prior(state[site]))
            accept = rngs[site].random(len(owner)) * weight[site] < new[site] * ratio
            state[site] = np.where(accept, proposal[site], state[site])
            weight[site] = np.where(accept, new[site], weight[site])
            rows[site].append(
                pd.DataFrame({"target_id": owner, "step": step, "prompt_id": state[site], "accepted": accept})
            )
    empty = pd.DataFrame({"target_id": [], "step": [], "prompt_id": [], "accepted": []}).astype(int)
    for site in places:
        frame = pd.concat(rows[site], ignore_index=True) if steps else empty
        write_table(frame.assign(epsilon=kernel.epsilon), context.results / "mcmc" / f"{site.label}.parquet")
        echo(f"run_mcmc {site.label}: {len(seeds)} chains of {steps} evaluations")
