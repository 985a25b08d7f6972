"""Label functions that a chat model proposes: it is shown texts and the grammar, and what it answers is tried as all others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inversescope.config.functions import KINDS, Function, parse_function
from inversescope.config.methods import ProposerConfig
from inversescope.errors import InputError

#: A message to a chat model -> its answer.
Chat = Callable[[str], str]


def grammar() -> str:
    """The functions and classes of the grammar, a line each, as a chat model is told them."""
    lines = []
    for name, kind in KINDS.items():
        takes = [f"[{one}]" if place >= kind.needs else one for place, one in enumerate(kind.takes)]
        written = f"{name}({', '.join(takes)})" if takes else name
        lines.append(f"{written}: {kind.gives}; {kind.means}")
    return "\n".join(lines)


def message(instruction: str, alike: Sequence[str], others: Sequence[str]) -> str:
    """What a chat model is asked about texts that a site takes to be alike, and others of the prior."""
    groups = [f"Group {name}:\n" + "\n".join(texts) for name, texts in (("A", alike), ("B", others))]
    return "\n\n".join([instruction.format(grammar=grammar()), *groups])


def functions_in(answer: str) -> list[Function]:
    """Functions that an answer names, each once: lines that the grammar reads, without bullets, numbers and quotes around them."""
    found: dict[Function, None] = {}
    for line in answer.splitlines():
        try:
            found[parse_function(line.strip().lstrip("-*0123456789. ").strip("`"))] = None
        except InputError:
            continue
    return list(found)


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
