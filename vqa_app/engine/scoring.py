"""Likelihood of given answers: to choose among them, and to measure the effect of the pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vqa_app.engine.runtime import Runtime
from vqa_app.engine.scheduler import Pause, Steps
from vqa_app.pictures.picture import Picture, blank_like
from vqa_app.prompts.conversation import Conversation, Message
from vqa_app.prompts.prompt import Prompt, encode


def encode_answer(
    runtime: Runtime, conversation: Conversation, answer: str
) -> tuple[Prompt, range]:
    """Encode the conversation with an answer.

    Returns:
        The prompt, and the positions of the answer's tokens, end token included.
    """
    whole = conversation.then(Message.assistant(answer))
    prompt = encode(runtime.processor, whole, answer_next=False)
    mask = prompt.answer_mask.tolist()
    last = max(position for position, is_answer in enumerate(mask) if is_answer)
    first = last
    while mask[first - 1]:
        first -= 1
    return prompt, range(first, last + 1)


def log_probabilities(runtime: Runtime, conversation: Conversation, answer: str) -> Steps[Tensor]:
    """Return the log probability of each of the answer's tokens, end token included: [tokens]."""
    prompt, positions = encode_answer(runtime, conversation, answer)
    logits = yield from runtime.prompt_logits(prompt, positions.start - 1)
    logits = logits[: len(positions)].float()
    targets = prompt.inputs["input_ids"][0, positions.start : positions.stop].to(logits.device)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def score(
    runtime: Runtime, conversation: Conversation, choices: Sequence[str]
) -> Steps[list[float]]:
    """Return the probabilities of the answers, which sum to 1.

    They are the softmax over the mean log probability per token, so that long answers are not at
    a disadvantage.
    """
    means = []
    for choice in choices:
        found = yield from log_probabilities(runtime, conversation, choice)
        means.append(found.mean())
        yield Pause()
    return [float(share) for share in torch.stack(means).softmax(0)]


def image_gain(runtime: Runtime, conversation: Conversation, answer: str) -> Steps[float]:
    """Return the answer's mean log probability with the pictures minus that with blank ones.

    In nats per token; blank pictures have the same size.
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
    with_pictures = yield from log_probabilities(runtime, conversation, answer)
    yield Pause()
    with_blanks = yield from log_probabilities(runtime, blank, answer)
    return float(with_pictures.mean() - with_blanks.mean())
