"""Training of a target model on its task's answered prompts: lessons, curriculum, gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from inversescope.config.targets import TargetCandidate
from inversescope.config.targets import TargetTraining as Settings
from inversescope.device import device, on_cpu
from inversescope.errors import InputError
from inversescope.targets.hooks import without_attention
from inversescope.targets.models import Target, build_model
from inversescope.targets.substitutes import fast_linear_layers, short_attention
from inversescope.targets.tokenizers import check_single_tokens, encode, task_tokenizer
from inversescope.training import Schedule, next_token_loss, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from inversescope.tasks import Task

GATE_PROMPTS = 1024
GATE_EVERY = 25  # steps
#: Part of the task -> name of the random stream of the prompts that a target is tested on.
GATE_STREAMS = {"gate": "gate", "held_out": "held out"}


class TargetTraining:
    """The training of one candidate, and what it has reached.

    Args:
        name: of the model in the configuration.
        candidate: of the candidate, for messages.
        task: what is learned.
        further: tasks whose answered prompts are learned too.
        stream: names and numbers -> the random stream of that name.
        echo: where lines of progress go.

    Attributes:
        target: the model that is trained.
        level: place in the curriculum.
        passed_at: step at which the gate was first passed; None before.

    Raises:
        InputError: the candidate has too few positions, the tokenizer does not suit the task, or there is no prompt to test on.
    """

    def __init__(
        self,
        name: str,
        candidate: str,
        spec: TargetCandidate,
        settings: Settings,
        task: Task,
        further: Mapping[str, Task],
        stream: Callable[..., np.random.Generator],
        echo: Callable[[str], None],
    ) -> None:
        self.name, self.candidate, self.spec, self.settings = name, candidate, spec, settings
        self.task, self.further, self.stream, self.echo = task, further, stream, echo
        tokenizer = task_tokenizer(task, *further.values())
        check_single_tokens(tokenizer, task.single_token_words())
        task.check_tokenizer(lambda texts: encode(tokenizer, texts))
        width = spec.shape.initializer_range
        model = build_model(spec.shape, len(tokenizer), spec.seed, initializer_range=width)
        # Training leaves it on the device: lessons and tests follow it.
        self.target = Target(model if on_cpu() else model.to(device()), tokenizer, name)
        self.level = 0
        self.passed_at: int | None = None
        self._recent: list[float] = []
        #: (query, key) positions of attention that is cut in the first blocks until the gate is passed.
        hidden = task.lesson(1, None, stream("shape")).hidden
        self._hidden = hidden if settings.delay_layers else None
        gate = self._asked("gate")
        if gate is None:
            raise InputError(
                f"task {task.name} has no prompts to test a target on", task.split_remedy("test")
            )
        self._gate = gate

    def run(self) -> pd.DataFrame:
        """Train up to the gate and `extra_steps` beyond it, or to `max_steps`; returns the log of `training.train`."""
        settings, model = self.settings, self.target.model
        schedule = Schedule(
            settings.max_steps,
            settings.learning_rate,
            settings.weight_decay,
            (0.9, 0.98),
            settings.warmup,
            "constant",
        )
        with fast_linear_layers(model), short_attention(model):
            return train(
                model,
                self._loss,
                schedule,
                name=f"train_target {self.candidate}",
                tokens_per_step=settings.batch_size * 17,
                echo=self.echo,
                stop=self._stop,
                rate=self._rate,
            )

    def gate_accuracy(self) -> float:
        """Share of the gate's prompts that are answered right; where the task says so (`gate_by`), the smallest by label."""
        return self._accuracy(*self._gate)

    def held_out_accuracy(self) -> float | None:
        """The same of the prompts that the task holds out altogether; None if there are none."""
        asked = self._asked("held_out")
        return None if asked is None else self._accuracy(*asked)

    def _accuracy(self, tokens: Tensor, answered: Tensor, groups: np.ndarray) -> float:
        right = answered_right(self.target.model, tokens, answered)
        self.target.model.train()
        return min(float(right[groups == group].mean()) for group in np.unique(groups))

    def _asked(self, part: str) -> tuple[Tensor, Tensor, np.ndarray] | None:
        """Answered prompts (B, T), which tokens behind the first are answers (B, T - 1), group of each prompt (B,)."""
        index = self.task.target_sample(GATE_PROMPTS, part, self.stream(GATE_STREAMS[part]))
        if not len(index):
            return None
        tokens, starts, lengths = self._padded(self.task.questions(index), self.task.completed(index))
        groups = np.zeros(len(index))
        if self.task.gate_by is not None and part == "gate":
            groups = self.task.features_of(index)[self.task.gate_by]
        return tokens, answer_mask(tokens, starts, lengths), groups

    def _padded(self, questions: list[str], texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        tokens, starts, lengths = (
            x.to(self.target.model.device) for x in padded(self.target.tokenizer, questions, texts)
        )
        positions, longest = self.spec.shape.n_positions, int(lengths.max())
        if longest > positions:
            raise InputError(
                f"candidate {self.candidate} has {positions} positions, but prompts take up to {longest}",
                f"raise models.{self.name}.shape.n_positions",
            )
        return tokens, starts, lengths

    def _delayed(self, tokens: Tensor) -> AbstractContextManager[None]:
        """Hide the query from the first blocks, as long as the gate is not passed."""
        if self._hidden is None or self.passed_at is not None:
            return nullcontext()
        length = tokens.shape[1]
        removed = torch.zeros(1, 1, length, length, dtype=torch.bool)
        query, key = self._hidden[self._hidden[:, 0] < length].T
        removed[0, 0, query, key] = True
        return without_attention(self.target, dict.fromkeys(range(self.settings.delay_layers), removed))

    def _loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of a step's lesson in nats a token, on the tokens that the lesson scores."""
        settings = self.settings
        self._move_on(step)
        rng = self.stream(self.spec.seed, step)
        counts = {name: round(share * settings.batch_size) for name, share in settings.corpus.items()}
        size = settings.curriculum[self.level] if settings.curriculum else None
        lesson = self.task.lesson(settings.batch_size - sum(counts.values()), size, rng)
        lessons = [lesson, *(self.further[name].lesson(n, None, rng) for name, n in counts.items())]
        tokens, starts, lengths = self._padded(
            [text for one in lessons for text in one.questions],
            [text for one in lessons for text in one.texts],
        )
        with self._delayed(tokens):
            logits = self.target.model(tokens).logits
        if lesson.scored is None:
            weight = settings.answer_weight
            return next_token_loss(logits, tokens, lengths, starts if weight != 1.0 else None, weight), {}
        predicted = logits[:, lesson.scored - 1].transpose(1, 2)
        value = F.cross_entropy(predicted, tokens[:, lesson.scored], reduction="none")
        self._recent.append(float(value[:, -2:].detach().mean()))
        return value.mean(), {"answer_loss": self._recent[-1]}

    def _move_on(self, step: int) -> None:
        """Go on to the next size of the curriculum when the present one is learnt."""
        sizes = self.settings.curriculum
        learnt = len(self._recent) >= 20 and np.mean(self._recent[-20:]) < self.settings.curriculum_loss
        if learnt and self.level + 1 < len(sizes):
            self.level += 1
            self._recent.clear()
            self.echo(f"train_target {self.candidate}: {sizes[self.level]} entries from step {step}")

    def _stop(self, step: int) -> bool:
        """Whether the training ends after a step; looks at the gate from time to time."""
        settings = self.settings
        at_the_top = self.level + 1 >= len(settings.curriculum)
        if step % GATE_EVERY == 0 and at_the_top and self.passed_at is None:
            # The query is hidden from early blocks here as in training; the final accuracy is without.
            with self._delayed(self._gate[0]):
                accuracy = self.gate_accuracy()
            if accuracy >= settings.gate_accuracy:
                self.passed_at = step
                self.echo(
                    f"train_target {self.candidate}: gate {settings.gate_accuracy} passed at step {step} with {accuracy:.3f}"
                )
        if settings.schedule != "gate" or self.passed_at is None:
            return False
        return step >= self.passed_at + settings.extra_steps

    def _rate(self, step: int) -> float:
        """Learning rate of a step: constant up to the gate and then linear to zero, or a cosine over all steps."""
        settings, left = self.settings, 1.0
        if self.passed_at is not None:
            left = 1.0 - (step - self.passed_at) / settings.extra_steps
        if settings.schedule == "cosine":
            left = 0.5 * (1.0 + np.cos(np.pi * step / settings.max_steps))
        return settings.learning_rate * min(1.0, (step + 1) / settings.warmup) * left


def answer_tokens(task: Task, tokenizer: PreTrainedTokenizerFast, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Questions with their answers as tokens (N, T), and which of the tokens behind the first are answers, bool (N, T - 1)."""
    tokens, starts, lengths = padded(tokenizer, task.questions(index), task.completed(index))
    return tokens, answer_mask(tokens, starts, lengths)


def padded(
    tokenizer: PreTrainedTokenizerFast, questions: list[str], texts: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Answered questions as tokens (B, T), padded with the end token, and the lengths of questions and of both (B,) each."""
    ids = encode(tokenizer, texts)
    starts = torch.tensor([len(i) for i in encode(tokenizer, questions)])
    lengths = torch.tensor([len(i) for i in ids])
    table = np.full((len(ids), int(lengths.max())), int(tokenizer.eos_token_id))
    for row, i in enumerate(ids):
        table[row, : len(i)] = i
    return torch.from_numpy(table), starts, lengths


def answer_mask(tokens: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Which of the tokens (B, T) behind the first are answers, bool (B, T - 1); lengths as from `padded`."""
    place = torch.arange(1, tokens.shape[1], device=tokens.device)
    return (place >= starts[:, None]) & (place < lengths[:, None])


def answered_right(model: PreTrainedModel, tokens: Tensor, answered: Tensor) -> np.ndarray:
    """Whether the model gives each answer in all its tokens, each after the true ones, bool (N,); arguments as from
    `answer_tokens`. Leaves the model in evaluation mode."""
    model.eval()
    tokens, answered = tokens.to(model.device), answered.to(model.device)
    with torch.inference_mode():
        right = model(tokens).logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return np.asarray((right | ~answered).all(1).cpu())
