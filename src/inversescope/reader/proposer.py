"""Label functions that a chat model proposes: it is shown texts and the grammar, and what it answers is tried as all others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from textwrap import shorten

from inversescope.config.functions import KINDS, Function, read_function
from inversescope.config.methods import ProposerConfig
from inversescope.errors import InputError

#: A message to a chat model -> its answer.
Chat = Callable[[str], str]


def grammar() -> str:
    """The functions and classes of the grammar, a line each, as a chat model is told them: those of raw text."""
    lines = []
    for name, kind in KINDS.items():
        if name == "slot":
            continue
        takes = [f"[{one}]" if place >= kind.needs else one for place, one in enumerate(kind.takes)]
        written = f"{name}({', '.join(takes)})" if takes else name
        lines.append(f"{written}: {kind.gives}; {kind.means}")
    return "\n".join(lines)


def message(instruction: str, alike: Sequence[str], others: Sequence[str]) -> str:
    """What a chat model is asked about texts that a site takes to be alike, and others of the prior."""
    groups = [f"Group {name}:\n" + "\n".join(texts) for name, texts in (("A", alike), ("B", others))]
    return "\n\n".join([instruction.format(grammar=grammar()), *groups])


@dataclass(frozen=True)
class Said:
    """What a chat model answered.

    Attributes:
        functions: those that it names, each once.
        n_lines: lines with anything in them.
        n_read: lines that the grammar can read.
        unread: of the others, those with the same fault: how many there are, and an example.
    """

    functions: list[Function] = field(default_factory=list)
    n_lines: int = 0
    n_read: int = 0
    unread: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, answers: Sequence[str]) -> Said:
        """Read answers line by line, without bullets, numbers and quotes around a line."""
        lines = [
            line.strip(" \t`").lstrip("-*0123456789. ").strip("`") for line in "\n".join(answers).splitlines()
        ]
        lines = [line for line in lines if line]
        found: list[Function] = []
        faults: dict[str, list[str]] = {}
        for line in lines:
            try:
                found.append(_of_raw_text(read_function(line)))
            except InputError as error:
                told = f"{shorten(line, 60)!r}: {shorten(error.culprit, 90)}"
                faults.setdefault(error.remedy, []).append(told)
        groups = sorted(faults.values(), key=len, reverse=True)
        unread = [f"{len(one)} such as {one[0]}" for one in groups]
        return cls(list(dict.fromkeys(found)), len(lines), len(found), unread)


def _of_raw_text(function: Function) -> Function:
    """The function itself. Raises `InputError` if it, or one inside of it, looks at slots."""
    if function.name == "slot":
        raise InputError("slots are not told by raw text", "leave it out")
    for argument in function.arguments:
        if isinstance(argument, Function):
            _of_raw_text(argument)
    return function


def chat_with(settings: ProposerConfig) -> Chat:
    """A chat model that answers greedily. Raises `InputError` if it cannot be loaded, or has no chat template."""
    import torch

    from inversescope.targets.sources import folder_or_repository
    from inversescope.targets.tokenizers import check_chat

    location = folder_or_repository(settings.path, settings.revision if settings.source == "hub" else None)
    model, tokenizer = location.model(settings.dtype, settings.device_map), location.tokenizer()
    check_chat(tokenizer, settings.path)

    def answer(text: str) -> str:
        turn = [{"role": "user", "content": text}]
        asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(asked, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
        with torch.inference_mode():
            said = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=settings.max_tokens,
                pad_token_id=tokenizer.eos_token_id,
            )
        return str(tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True))

    return answer
