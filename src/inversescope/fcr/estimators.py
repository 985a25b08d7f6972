"""Feature consistency rates (paper, equation 1) and their estimators, refusal rates, intervals, the exact reference.

A *cell* is one target prompt at one site, bandwidth and feature. Every estimator gives a value a cell; rates are means over
targets, and intervals resample targets. Estimators of E[f(x) = f(x^)] under P(x; z) proportional to prior(x) k(d / eps):

- `generated`: plain mean over accepted samples (the paper's);
- `reweighted`: accepted samples weighted by prior k / q, self-normalised and truncated;
- `cache`: cached prompts within epsilon alone, no generator;
- `combined`: cached neighbours and accepted samples by multiple importance sampling;
- `mcmc`: states of a swap-move chain from the target's own prompt.

Controls: `prior` (no activation), `shuffled` (another target's samples), `nearest` (nearest cached prompt), `majority`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from inversescope.kernel.kernel import effective_sample_size, truncate_weights

LOW_ESS = 10.0  # cells with a smaller effective sample size are flagged


@dataclass
class Estimate:
    """One cell's value, the number of samples behind it and their effective number."""

    value: float
    n: int
    ess: float

    @staticmethod
    def missing() -> Estimate:
        """A cell for which there is nothing to go by: missing, not guessed."""
        return Estimate(math.nan, 0, 0.0)


class Weighed:
    """Samples with non-negative weights (n,), of which the share is asked that matches in one feature after the other."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight, self.total = weight, float(weight.sum())
        self.n, self.ess = int((weight > 0).sum()), effective_sample_size(weight)

    def share(self, match: np.ndarray) -> Estimate:
        """Self-normalised weighted mean of matches (n,)."""
        if self.total <= 0.0:
            return Estimate.missing()
        return Estimate(float((match * self.weight).sum()) / self.total, self.n, self.ess)


def weighted_match(match: np.ndarray, weight: np.ndarray) -> Estimate:
    """Self-normalised weighted mean of matches (n,) with non-negative weights (n,)."""
    return Weighed(weight).share(match)


def relative_weights(log_weight: np.ndarray) -> np.ndarray:
    """Weights up to a common factor, from their logarithms, without overflow."""
    return np.exp(log_weight - log_weight.max()) if log_weight.size else log_weight


def importance_weights(kernel: np.ndarray, log_prior: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Importance weights kernel * prior / q of the accepted ones of candidates (n,), truncated.

    `kernel` is 0 for refused candidates; `log_q` is under the decoding rule that drew them.
    """
    keep = kernel > 0
    return truncate_weights(relative_weights(np.log(kernel[keep]) + log_prior[keep] - log_q[keep]))


def reweighted(match: np.ndarray, kernel: np.ndarray, log_prior: np.ndarray, log_q: np.ndarray) -> Estimate:
    """Mean of matches (n,) by `importance_weights`, self-normalised."""
    return weighted_match(match[kernel > 0], importance_weights(kernel, log_prior, log_q))


@dataclass
class CacheDraws:
    """Cached neighbours of one target.

    Attributes:
        match: (m,) whether they share the label. kernel: (m,) kernel values. log_prior: (m,) log prior.
        log_density: (m,) log density of the distribution that the cache was drawn from.
        log_q: (m,) log q under the generator, or None where there are too many to be worth it (the cell is dense).
        size: number of cached prompts, neighbours or not.
    """

    match: np.ndarray
    kernel: np.ndarray
    log_prior: np.ndarray
    log_density: np.ndarray
    log_q: np.ndarray | None
    size: int


@dataclass
class GeneratorDraws:
    """Candidates of one target: match, kernel (0 = refused), log prior, log cache density (-inf outside), log q: each (n,)."""

    match: np.ndarray
    kernel: np.ndarray
    log_prior: np.ndarray
    log_density: np.ndarray
    log_q: np.ndarray


def combined(cache: CacheDraws, generator: GeneratorDraws) -> Estimate:
    """Multiple importance sampling of cached neighbours and accepted candidates (`combined_weights`)."""
    match = np.concatenate([cache.match, generator.match[generator.kernel > 0]])
    return weighted_match(match, combined_weights(cache, generator))


def combined_weights(cache: CacheDraws, generator: GeneratorDraws) -> np.ndarray:
    """`mixture_log_weights` without the logarithm, up to a factor, truncated as in `reweighted`; all 0 if none can be weighed."""
    log_weight = mixture_log_weights(cache, generator)
    if not np.isfinite(log_weight).any():
        return np.zeros(len(log_weight))
    return truncate_weights(relative_weights(log_weight))


def mixture_log_weights(cache: CacheDraws, generator: GeneratorDraws) -> np.ndarray:
    """Log weights of the cached neighbours, then of the accepted candidates, float64 (m + accepted,); -inf for what is not counted.

    Sparse cells use the balance heuristic: a prompt's weight is kernel * prior / (n0 p0 + n1 q), with n0 cached prompts drawn from
    p0 and n1 candidates from q, whichever of the two it came from. In dense cells (`log_q` is None) the cache alone speaks
    for the prompts that it can hold and the candidates for the rest (the test prompts; held-out name pairs, if the cache has
    none): also a partition of unity, so also unbiased, and no q of thousands of neighbours is needed. The weights add up to an
    estimate of the prior's share of the ball. Labels (`match`) play no part.
    """
    n1 = len(generator.kernel)
    keep = generator.kernel > 0
    inside = np.isfinite(generator.log_density[keep])
    log_n0 = math.log(max(cache.size, 1))
    log_n1 = math.log(max(n1, 1))
    cached_base = log_n0 + cache.log_density
    drawn_base = log_n1 + generator.log_q[keep]
    if cache.log_q is None:
        cached_log = np.log(cache.kernel) + cache.log_prior - cached_base
        drawn_log = np.where(
            inside, -np.inf, np.log(generator.kernel[keep]) + generator.log_prior[keep] - drawn_base
        )
    else:
        cached_log = np.log(cache.kernel) + cache.log_prior - np.logaddexp(cached_base, log_n1 + cache.log_q)
        mixture = np.logaddexp(log_n0 + generator.log_density[keep], drawn_base)
        drawn_log = np.log(generator.kernel[keep]) + generator.log_prior[keep] - mixture
    return np.concatenate([cached_log, drawn_log])


@dataclass
class Refusal:
    """Refusal and diversity of one target's candidates (nats where logarithms)."""

    n: int
    parse: float
    distance: float
    entropy: float
    copies: float
    log_mass: float

    @property
    def rate(self) -> float:
        """Share of candidates that were refused, for whatever reason."""
        return self.parse + self.distance


def refusal(
    parsed: np.ndarray,
    accepted: np.ndarray,
    log_q: np.ndarray,
    is_copy: np.ndarray,
    log_prior: np.ndarray,
    marginal: np.ndarray | None = None,
) -> Refusal:
    """Refusal rates from raw candidates (n,), and the entropy of the accepted ones.

    The accepted samples follow q restricted to the preimage, so their entropy is -E[log q] + log(acceptance rate);
    log(mean(accepted * prior / q)) estimates the log probability of the preimage.

    Args:
        log_q: as each candidate was drawn, given its own activation.
        log_prior: log P(x) of each candidate.
        marginal: log q without it, where each candidate has an activation of its own: only this speaks of the entropy of all
            candidates. NaN where it was not computed; None = log_q.
    """
    n = len(parsed)
    rate = float(accepted.mean()) if n else 0.0
    known = (log_q if marginal is None else marginal)[accepted]
    known = known[np.isfinite(known)]
    entropy = -float(known.mean()) + math.log(rate) if known.size else math.nan
    size = math.nan
    if rate > 0:
        inverse = log_prior[accepted] - log_q[accepted]
        size = float(inverse.max() + np.log(np.exp(inverse - inverse.max()).sum() / n))
    copies = float(is_copy[accepted].mean()) if rate > 0 else math.nan
    return Refusal(n, float((~parsed).mean()), float((parsed & ~accepted).mean()), entropy, copies, size)
