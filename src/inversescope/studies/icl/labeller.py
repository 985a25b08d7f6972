"""Labels of texts by a chat model (paper, D.3.3): batched, greedy, only labels of a given set, cached by text, resumable.

The model continues the conversation token by token, and only with tokens that lead to a label: what it would rather say makes no
difference. Prompts of one length run together, so that nothing is padded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

from inversescope.activations.inputs import BATCH_TOKENS
from inversescope.errors import InputError
from inversescope.targets.tokenizers import check_chat, encode

Progress = Callable[[int, int], None]


@dataclass
class Labelled:
    """Labels of N texts.

    Attributes:
        labels: one a text; `null` where the model's answer was none.
        refused: number of answers that were no label, counted as `null`.
        cached: number of texts that were labelled before.
    """

    labels: list[str]
    refused: int
    cached: int


@dataclass
class Labeller:
    """A chat model that answers with one of some labels.

    Args:
        model: the chat model.
        tokenizer: its tokenizer, with a chat template.
        instruction: what it is asked; the text follows.
        labels: the answers it may give.
        null: label of what is no answer.
        identity: name and revision of the model, part of the cache's key.
        cache: file of JSON lines that is read first and appended to, batch by batch; None: no cache.
        batch_tokens: tokens of a pass, at most (one text at least).

    Raises:
        InputError: the tokenizer has no chat template or end token, two labels have the same tokens, or `null` is no label.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    instruction: str
    labels: Sequence[str]
    null: str
    identity: str
    cache: Path | None = None
    batch_tokens: int = BATCH_TOKENS
    _known: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_chat(self.tokenizer, self.identity)
        if self.tokenizer.eos_token_id is None:
            raise InputError(f"the tokenizer of {self.identity} has no end token", "set its eos_token")
        if self.null not in self.labels:
            raise InputError(f"'{self.null}' is not among the labels", f"add it to {', '.join(self.labels)}")
        self._end = int(self.tokenizer.eos_token_id)
        self._answers = {
            tuple(int(t) for t in ids): label
            for label, ids in zip(
                self.labels, encode(self.tokenizer, list(self.labels), strict=False), strict=True
            )
        }
        if len(self._answers) < len(self.labels) or () in self._answers:
            raise InputError(
                f"the tokenizer of {self.identity} gives two labels the same tokens", "rename one of them"
            )
        # A beginning of an answer -> what may follow it; a whole answer may be followed by the end.
        self._next: dict[tuple[int, ...], list[int]] = {}
        for answer in self._answers:
            for size, token in enumerate([*answer, self._end]):
                following = self._next.setdefault(answer[:size], [])
                if token not in following:
                    following.append(token)
        self._load()

    def __call__(self, texts: Sequence[str], progress: Progress | None = None) -> Labelled:
        """Label texts; those labelled before, in this run or another, are looked up.

        Args:
            texts: N texts.
            progress: called with the number of texts labelled and to be labelled.
        """
        keys = [self.key(text) for text in texts]
        todo = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        known = len(texts) - sum(key in todo for key in keys)
        done = 0
        for names, answers in self._batches(list(todo), list(todo.values())):
            self._store(names, answers)
            done += len(names)
            if progress:
                progress(done, len(todo))
        found = [self._known[key] for key in keys]
        allowed = set(self.labels)
        return Labelled(
            [one if one in allowed else self.null for one in found],
            sum(one not in allowed for one in found),
            known,
        )

    def key(self, text: str) -> str:
        """SHA-256 of the text and of all that the answer depends on."""
        parts = [self.identity, self.instruction, *self.labels, str(self.tokenizer.chat_template), text]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _load(self) -> None:
        """Read the cache. A line that a killed run did not finish is passed over."""
        if self.cache is None or not self.cache.is_file():
            return
        for line in self.cache.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                self._known[str(row["key"])] = str(row["label"])
            except (ValueError, TypeError, KeyError):
                continue

    def _store(self, keys: Sequence[str], answers: Sequence[str]) -> None:
        self._known.update(zip(keys, answers, strict=True))
        if self.cache is None:
            return
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        with self.cache.open("a", encoding="utf-8") as lines:
            # A killed run may have left half a line.
            broken = self.cache.stat().st_size and not self.cache.read_bytes().endswith(b"\n")
            lines.write("\n" if broken else "")
            lines.writelines(
                json.dumps({"key": key, "label": label}) + "\n"
                for key, label in zip(keys, answers, strict=True)
            )

    def _batches(self, keys: list[str], texts: list[str]):  # type: ignore[no-untyped-def]
        """Answers batch by batch: keys and labels."""
        conversations = [
            self.tokenizer.apply_chat_template(
                # One turn of the user's: Gemma 2 knows no system message.
                [{"role": "user", "content": f"{self.instruction}\n\n{text}"}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for text in texts
        ]
        ids = encode(self.tokenizer, conversations, strict=False)
        lengths = np.array([len(one) for one in ids], np.int64)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            size = max(1, self.batch_tokens // int(length))
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                yield [keys[row] for row in part], self._answer(np.stack([ids[row] for row in part]))

    @torch.inference_mode()
    def _answer(self, tokens: np.ndarray) -> list[str]:
        """Greedy answers to conversations (B, T), among the labels."""
        device = self.model.device
        cache = DynamicCache(config=self.model.config)
        ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
        said: list[tuple[int, ...]] = [()] * len(tokens)
        alive = np.ones(len(tokens), bool)
        while alive.any():
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = output.logits[:, -1].float().cpu()
            chosen = np.full(len(tokens), self._end)
            for row in np.flatnonzero(alive):
                allowed = self._next[said[row]]
                token = allowed[int(logits[row, allowed].argmax())]
                chosen[row] = token
                if token == self._end:
                    alive[row] = False
                else:
                    said[row] = (*said[row], token)
                    # Where nothing but the end may follow, nothing needs to be computed.
                    alive[row] = self._next[said[row]] != [self._end]
            ids = torch.from_numpy(chosen)[:, None].to(device)
        return [self._answers[one] for one in said]
