"""Tokenizers: made for a task, checked, and used on a million prompts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerFast

from inversescope.errors import InputError
from inversescope.tasks.base import END_OF_TEXT, UNKNOWN, WORD, split_words, splitter

if TYPE_CHECKING:
    from inversescope.targets.models import Target
    from inversescope.tasks.base import Task

_TEXTS_PER_CALL = 8192


def word_tokenizer(words: Sequence[str], pattern: str | None = None) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token a word, lossless on texts of these words: decode(encode(x)) == x.

    As in GPT-2 the space before a word belongs to its token, and punctuation has none. Token 0 is
    `<|endoftext|>` (begin, end and padding), token 1 `<|unknown|>`; the rest keep the order of `words`.

    Args:
        words: the tokens, each as it stands: " Mary" with the space before it, "Then" for the beginning of a
            text, ",".
        pattern: regular expression of one token (`Task.word_pattern`), if not that of a word or punctuation mark.

    Raises:
        InputError: naming an entry that the tokenizer would split.
    """
    vocabulary = {END_OF_TEXT: 0, UNKNOWN: 1}
    for word in words:
        if split_words(word, pattern or WORD) != [word]:
            raise InputError(f"'{word}' is not one word, mark or space", "Split it into several tokens")
        vocabulary.setdefault(word, len(vocabulary))
    return _word_level(vocabulary, pattern or WORD, END_OF_TEXT, UNKNOWN)


def character_tokenizer(
    vocabulary: Sequence[str], end: str = END_OF_TEXT, unknown: str | None = UNKNOWN
) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token a character, lossless on texts of these characters.

    Args:
        vocabulary: the tokens in order of their ids; single characters, `end` and `unknown` apart.
        end: the token that begins and ends a sequence of the generator, and pads.
        unknown: stands for all other characters; without it they are refused.

    Raises:
        InputError: naming an entry that occurs twice or is not one character, or if `end` or `unknown` is missing.
    """
    ids = {token: number for number, token in enumerate(vocabulary)}
    special = [end] if unknown is None else [end, unknown]
    for number, token in enumerate(vocabulary):
        if ids[token] != number:
            raise InputError(
                f"'{token}' is twice in the vocabulary", "Name each character once, in order of ids"
            )
        if len(token) != 1 and token not in special:
            raise InputError(f"'{token}' in the vocabulary is not one character", "Split it")
    for token in special:
        if token not in ids:
            raise InputError(f"'{token}' is not in the vocabulary", "Name a character of the vocabulary")
    return _word_level(ids, r"[\s\S]", end, unknown)


def task_tokenizer(*tasks: Task) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a target that is trained on tasks, of their words or characters; the first says what a token is.

    A word with a mark in it, such as "o'clock", is several tokens.
    """
    words = [word for task in tasks for word in task.words()]
    if tasks[0].token_unit == "word":
        pattern = tasks[0].word_pattern or WORD
        return word_tokenizer([token for word in words for token in split_words(word, pattern)], pattern)
    return character_tokenizer([END_OF_TEXT, UNKNOWN, *dict.fromkeys(words)])


def _word_level(ids: dict[str, int], pattern: str, end: str, unknown: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that looks up what a pattern finds."""
    options = {} if unknown is None else {"unk_token": unknown}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, **options))
    backend.pre_tokenizer = splitter(pattern)
    backend.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
        **options,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], strict: bool = True) -> list[np.ndarray]:
    """Turn texts into token ids, without special tokens, fast enough for a million prompts.

    Args:
        tokenizer: any fast tokenizer.
        texts: N texts.
        strict: refuse words that the tokenizer does not know, instead of giving the unknown token.

    Returns:
        N int32 arrays, each as long as its text has tokens.

    Raises:
        InputError: naming the first text with an unknown word, if strict.
    """
    flat: list[int] = []
    lengths: list[int] = []
    backend = tokenizer.backend_tokenizer
    words = _word_vocabulary(backend)
    with _unpadded(backend):
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            chunk = list(texts[start : start + _TEXTS_PER_CALL])
            if words is None or not _encode_words(words, chunk, flat, lengths):
                try:
                    encodings = backend.encode_batch_fast(chunk, add_special_tokens=False)
                except Exception as error:  # tokenizers without an unknown token raise a bare Exception
                    raise InputError(
                        f"The tokenizer cannot encode one of '{chunk[0]}' and the texts after it ({error})",
                        "Use a target model whose vocabulary covers the task",
                    ) from error
                for one in encodings:
                    flat += one.ids
                    lengths.append(len(one.ids))
    ids = np.array(flat, dtype=np.int32)
    ends = np.cumsum(np.array(lengths, dtype=np.int64))
    unknown = tokenizer.unk_token_id
    if strict and unknown is not None and unknown != tokenizer.eos_token_id and (ids == unknown).any():
        culprit = texts[int(np.searchsorted(ends, (ids == unknown).argmax(), side="right"))]
        raise InputError(
            f"The tokenizer does not know a word of '{culprit}'",
            "Use a target model whose tokenizer covers the task, or train one on it",
        )
    return np.split(ids, ends[:-1]) if len(texts) else []


def _word_vocabulary(backend: tokenizers.Tokenizer) -> dict[str, int] | None:
    """The vocabulary of a tokenizer that `word_tokenizer` made with the usual pattern, None for any other."""
    if not isinstance(backend.model, tokenizers.models.WordLevel) or backend.normalizer is not None:
        return None
    if backend.pre_tokenizer.__getstate__() != splitter().__getstate__():
        return None
    return backend.get_vocab()


def _encode_words(words: dict[str, int], texts: list[str], flat: list[int], lengths: list[int]) -> bool:
    """Append ids and lengths of texts that consist of known words only; otherwise leave both alone and
    return False.

    This is the tokenizer's own rule, four times as fast in Python's regular expressions. Whatever could
    differ (letters beyond ASCII, special tokens, unknown words) is left to the tokenizer.
    """
    find = re.compile(WORD).findall
    pieces: list[str] = []
    counts: list[int] = []
    for text in texts:
        found = find(text)
        if not text.isascii() or "<|" in text or "".join(found) != text:
            return False
        pieces += found
        counts.append(len(found))
    try:
        flat += [words[piece] for piece in pieces]
    except KeyError:
        return False
    lengths += counts
    return True


@contextmanager
def _unpadded(backend: tokenizers.Tokenizer) -> Iterator[None]:
    """Switch off padding and truncation, which are settings of the last call and not of the tokenizer."""
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    try:
        yield
    finally:
        if padding:
            backend.enable_padding(**padding)
        if truncation:
            backend.enable_truncation(**truncation)


def check_chat(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Raise `InputError` if a tokenizer, said to be of `name`, has no chat template."""
    if not tokenizer.chat_template:
        remedy = "use an instruction-tuned model, such as google/gemma-2-2b-it"
        raise InputError(f"{name} has no chat template", remedy)


def check_single_tokens(tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> None:
    """Check that each word, after a space, is one token that decodes to itself.

    Args:
        tokenizer: any fast tokenizer.
        words: with or without the leading space.

    Raises:
        InputError: naming the first word that is not.
    """
    spaced = [f" {word.strip()}" for word in words]
    unknown = tokenizer.unk_token_id
    for word, ids in zip(spaced, encode(tokenizer, spaced, strict=False), strict=True):
        lossless = (
            len(ids) == 1
            and tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False).strip() == word.strip()
        )
        if not lossless or (ids[0] == unknown and unknown != tokenizer.eos_token_id):
            raise InputError(
                f"The tokenizer cannot encode '{word}' as one token (it makes {len(ids)})",
                "Remove that word from the task, or use a target model whose tokenizer has it",
            )


def token_positions(
    task: Task, target: Target, index: np.ndarray, token_ids: Sequence[np.ndarray], name: str
) -> np.ndarray:
    """Token index (N,) of a named position in prompts of the prior, index (N,); -1 where a prompt has none.

    Raises:
        InputError: the task has no position of that name.
    """
    characters, texts = task.offsets(name, index), task.texts(index)
    if all(len(text) == len(ids) for text, ids in zip(texts, token_ids, strict=True)):
        return characters  # a token a character
    with _unpadded(target.tokenizer.backend_tokenizer):
        encodings = target.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    # A model with a begin token has it before the first of the text.
    ahead = 1 if target.bos else 0
    pairs = zip(encodings, characters.tolist(), strict=True)
    tokens = [-1 if at < 0 else encoding.char_to_token(at) for encoding, at in pairs]
    return np.array([-1 if t is None or t < 0 else t + ahead for t in tokens], np.int64)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the SHA-256 of a tokenizer's whole definition (model, pre-tokenizer, decoder, added tokens)."""
    with _unpadded(tokenizer.backend_tokenizer):
        return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
