"""How likely given answers are: for choosing among them, and for seeing whether the pictures
mattered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vqa_app.engine.runtime import Runtime
from vqa_app.engine.worker import finish
from vqa_app.pictures.picture import Picture, blank_like
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import Prompt, encode


def answered(runtime: Runtime, conversation: Conversation, answer: str) -> tuple[Prompt, range]:
    """The conversation with an answer, and where that answer's tokens (end token included)
    stand.
    """
    whole = conversation.then(Message.assistant(answer))
    prompt = encode(runtime.processor, whole, answer_next=False)
    mask = prompt.answer_mask.tolist()
    last = max(place for place, is_answer in enumerate(mask) if is_answer)
    first = last
    while mask[first - 1]:
        first -= 1
    return prompt, range(first, last + 1)


def log_probabilities(runtime: Runtime, conversation: Conversation, answer: str) -> Tensor:
    """[tokens]: log probability of each of the answer's tokens, its end token included."""
    prompt, places = answered(runtime, conversation, answer)
    keep = len(prompt) - places.start + 1
    reading = finish(runtime.read(prompt, lambda: False, keep))
    reading.close(())
    logits = reading.logits[: len(places)].float()
    targets = prompt.inputs["input_ids"][0, places.start : places.stop].to(logits.device)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def score(runtime: Runtime, conversation: Conversation, choices: Sequence[str]) -> list[float]:
    """Probabilities of the answers: softmax over their mean log probability per token, so that long
    ones are not held back for their length. They sum to 1.
    """
    means = [log_probabilities(runtime, conversation, choice).mean() for choice in choices]
    return torch.stack(means).softmax(0).tolist()


def image_gain(runtime: Runtime, conversation: Conversation, answer: str) -> float:
    """Mean log probability per token with the pictures, less that with grey ones of the same size,
    in nats.
    """
    if not conversation.pictures:
        return 0.0
    blank = Conversation(
        tuple(
            Message(
                message.role,
                tuple(blank_like(p) if isinstance(p, Picture) else p for p in message.parts),
            )
            for message in conversation.messages
        )
    )
    seen = log_probabilities(runtime, conversation, answer).mean()
    return float(seen - log_probabilities(runtime, blank, answer).mean())
