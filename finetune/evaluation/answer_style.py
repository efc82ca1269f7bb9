"""Ask for short answers where the expected ones are short, as VQA evaluations do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from finetune.evaluation.questions import Question

AnswerStyle: TypeAlias = Literal["auto", "short", "as-written"]
"""How answers are asked for: `short` appends LLaVA-1.5's instruction to the questions,
`as-written` nothing; `auto` is `short` for plain questions with short answers, unless the model was
trained on questions as they are written."""
_LEAST_SHARE = 0.9
"""Least share of plain questions, and of short answers, in data that is asked with the instruction.
The rest may be longer or have an instruction."""
_INSTRUCTION = re.compile(r"\b(answer|reply|respond)\b", re.IGNORECASE)
"""Matches questions and system prompts that say how to answer."""


def expect_short_answers(questions: Sequence[Question]) -> bool:
    """Return whether these are plain questions with short answers, as in most VQA data.

    Models answer such questions in sentences, which score nothing, unless they are asked for a
    word. The whole data decides, since an instruction for some questions would reveal how long
    their answers are. Data whose questions say themselves how to answer is left alone.
    """
    from finetune.data.samples import SHORT_ANSWER_WORDS

    short = sum(
        any(len(answer.split()) <= SHORT_ANSWER_WORDS for answer in question.answers)
        for question in questions
    )
    plain = sum(not _has_instruction(question) for question in questions)
    return bool(questions) and min(short, plain) >= _LEAST_SHARE * len(questions)


def ask_for_short_answers(questions: Sequence[Question]) -> list[Question]:
    """Return the questions with LLaVA-1.5's instruction, except those that have one already."""
    from vqa_app.prompts.conversation import SHORT_STYLE

    return [
        question if _has_instruction(question) else replace(question, instruction=SHORT_STYLE)
        for question in questions
    ]


def _has_instruction(question: Question) -> bool:
    first = question.row.turns[0]
    system = first.text if first.role == "system" else ""
    return bool(_INSTRUCTION.search(f"{system} {question.text}"))
