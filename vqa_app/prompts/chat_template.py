"""Chat templates: what of a rendered conversation is the template's, and what is people's.

A template is rendered with a stand-in for every text, and the texts are put in afterwards. So the
borders of each answer are known exactly, whatever the template does around it; nobody's text can be
taken for a placeholder or a control token; and a template that searches or rewrites message texts
(Qwen3 does with `<think>`) leaves them as they are. The stand-ins are wrapped in em spaces that no
template writes: where they are gone, the template strips its texts, and so do we.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from vqa_app.errors import DataError, ModelError
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, Message

TEMPLATE_ARGUMENTS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Given to every template. Answers are short, so no reasoning is asked for (Qwen3); and a prompt
must not change with the day it is made on (Llama 3 writes the date; this is its own default)."""

Kind: TypeAlias = Literal["template", "text", "answer", "frame"]
Style: TypeAlias = Literal["parts", "user parts", "strings"]

_OPEN, _CLOSE, _SPACE = "\ue000", "\ue001", "\u2003"
_STAND_IN = re.compile(f"({_SPACE}?){_OPEN}(\\d+){_CLOSE}({_SPACE}?)")


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendered text.

    `template` is the template's own; `text` a system or user text; `answer` an assistant's text;
    `frame` what else the model writes: the end token behind an answer, and a space before it.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Layout:
    """What has been learned of a processor's chat template by rendering samples."""

    source: str
    """The Jinja template."""
    style: Style
    """How it wants message contents: lists of parts, lists for users only, or strings."""
    image_token: str
    """What stands for a picture in the template's output."""
    adds_bos: bool
    """Whether the tokenizer puts its beginning-of-sequence token in front of a text."""
    system_role: bool
    """Whether it knows system messages; else their text opens the first user message."""
    opening: str
    """What it writes between a question and an answer that is still to come."""
    end_token: str
    """What ends an answer; empty where the tokenizer has nothing for it."""
    control: re.Pattern[str]
    """Strings that the tokenizer may take for something other than text."""
    special_tokens: dict[str, str]
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)
    """Held while tokenising: fast tokenizers cannot be shared by threads."""


@dataclass
class _Filler:
    """Hands out stand-ins and remembers what they stand for."""

    texts: list[tuple[Kind, str]] = field(default_factory=list)

    def put(self, kind: Kind, text: str) -> str:
        self.texts.append((kind, text))
        return f"{_SPACE}{_OPEN}{len(self.texts) - 1}{_CLOSE}{_SPACE}"


_layouts: weakref.WeakKeyDictionary[Any, Layout] = weakref.WeakKeyDictionary()
_learning = threading.Lock()


def layout(processor: Any) -> Layout:
    """What is known of the processor's template; learned at the first call.

    Raises:
        ModelError: there is no template, or it cannot place pictures.
    """
    source = chat_template(processor)
    with _learning:  # two threads must not get a layout each, with a lock each
        known = _layouts.get(processor)
        if known is None or known.source != source:
            known = _layouts[processor] = _learn(processor, source)
        return known


def chat_template(processor: Any) -> str:
    """The processor's template, or its tokenizer's.

    Raises:
        ModelError: neither has one.
    """
    for owner in (processor, processor.tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return template
    raise ModelError(
        "This model has no chat template.",
        "Choose an instruction-tuned model, or add a chat_template.jinja beside its config.json.",
    )


def image_token(processor: Any) -> str:
    """The string that stands for a picture before it is expanded."""
    return str(getattr(processor, "image_token", None) or "<image>")


def render(
    known: Layout,
    conversation: Conversation,
    *,
    answer_next: bool,
    question_incomplete: bool = False,
) -> list[Piece]:
    """The conversation as pieces of text, pictures still one `image_token` each.

    Args:
        answer_next: ends with what the template puts in front of an answer.
        question_incomplete: stop before the text of the last user message, which may still be
            missing.

    Raises:
        DataError: the template cannot express this conversation.
    """
    messages = conversation.messages if known.system_role else _fold_system(conversation)
    if question_incomplete and not (messages and messages[-1].role == "user"):
        messages = (*messages, Message("user", ()))
    filler = _Filler()
    contents = [_content(known, message, filler) for message in messages[:-1]]
    question = None
    if messages:
        folded = len(messages) == 1 and not known.system_role and conversation.system is not None
        question = len(filler.texts) + folded if question_incomplete else None
        contents.append(_content(known, messages[-1], filler, question))
    try:
        rendered = _run(known, contents, answer_next and not question_incomplete)
    except Exception as error:  # a template raises whatever it likes
        raise DataError(
            f"The model's chat template refuses this conversation: {error}",
            "User and assistant must take turns, beginning with the user.",
        ) from error
    pieces = _split(rendered, filler, stop=question)
    missing = sum(
        f"{_OPEN}{index}{_CLOSE}" not in rendered for index in range(len(filler.texts[:question]))
    )
    if missing:
        raise DataError(
            f"The model's chat template leaves out {missing} of the messages.",
            "Use a model whose template keeps whole conversations.",
        )
    return _framed(pieces, known)


def _fold_system(conversation: Conversation) -> tuple[Message, ...]:
    """The messages with the system text in front of the first user's, as Gemma's template does
    it.
    """
    if conversation.system is None:
        return conversation.messages
    first, *rest = conversation.dialogue or (Message("user", ()),)
    return (Message("user", (conversation.system + "\n\n", *first.parts)), *rest)


def _content(
    known: Layout, message: Message, filler: _Filler, question: int | None = None
) -> dict[str, Any]:
    """The message as the template wants it, stand-ins for its texts; up to one numbered
    `question`.
    """
    kind: Kind = "answer" if message.role == "assistant" else "text"
    parts: list[Any] = []
    for part in message.parts:
        if isinstance(part, Picture):
            parts.append({"type": "image"})
        elif part:
            parts.append({"type": "text", "text": filler.put(kind, part)})
    if not parts or question == len(filler.texts):
        parts.append({"type": "text", "text": filler.put(kind, "")})
    if known.style == "parts" or (known.style == "user parts" and message.role == "user"):
        return {"role": message.role, "content": parts}
    placeholder = known.image_token + "\n"
    text = "".join(part.get("text", placeholder) for part in parts)
    return {"role": message.role, "content": text}


def _run(known: Layout, messages: list[dict[str, Any]], answer_next: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(
        conversations=[messages],
        chat_template=known.source,
        add_generation_prompt=answer_next,
        **{**known.special_tokens, **TEMPLATE_ARGUMENTS},
    )
    return text


def _split(rendered: str, filler: _Filler, stop: int | None) -> list[Piece]:
    """Cuts rendered text at its stand-ins and fills them in; ends at the stand-in `stop`."""
    pieces: list[Piece] = []
    last = 0
    for match in _STAND_IN.finditer(rendered):
        left, index, right = match.group(1), int(match.group(2)), match.group(3)
        pieces.append(Piece("template", rendered[last : match.start()]))
        last = match.end()
        if index == stop:
            return [piece for piece in pieces if piece.text or piece.kind == "answer"]
        kind, text = filler.texts[index]
        text = text if left else text.lstrip()
        pieces.append(Piece(kind, text if right else text.rstrip()))
    pieces.append(Piece("template", rendered[last:]))
    return [piece for piece in pieces if piece.text or piece.kind == "answer"]


def _framed(pieces: Sequence[Piece], known: Layout) -> list[Piece]:
    """Marks what a model has to write around every answer; adds end tokens where there are none.

    Vicuna-style templates of the hub end an answer with a space and "USER:"; LLaVA-1.5 was trained
    with `</s>` there, and without an end token a model never learns to stop. Space between an
    answer and its end token (Llama 2), or between the generation prompt and an answer (Vicuna), has
    to be written by the model, so it is learned with the answer.
    """
    ending = re.compile(r"\s*" + re.escape(known.end_token))
    result: list[Piece] = []
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        text = piece.text
        if result and result[-1].kind == "answer" and known.end_token:
            match = ending.match(text) if piece.kind == "template" else None
            result.append(Piece("frame", match.group() if match else known.end_token))
            text = text[match.end() :] if match else text
        if piece.kind == "template" and following and following.kind == "answer":
            lead = text.removeprefix(known.opening)
            if lead.isspace() and lead != text:
                result += [Piece("template", known.opening), Piece("frame", lead)]
                continue
        result.append(Piece(piece.kind, text))
    if result and result[-1].kind == "answer" and known.end_token:
        result.append(Piece("frame", known.end_token))
    return [piece for piece in result if piece.text or piece.kind == "answer"]


def _learn(processor: Any, source: str) -> Layout:
    tokenizer = processor.tokenizer
    token = image_token(processor)
    control = _control_tokens(processor, source, token)
    draft = Layout(
        source=source,
        style="parts",
        image_token=token,
        adds_bos=_adds_bos(tokenizer),
        system_role=True,
        opening="",
        end_token="",
        control=_any_of(control),
        special_tokens={
            key: value
            for key, value in tokenizer.special_tokens_map.items()
            if isinstance(value, str)
        },
    )
    for style in ("parts", "user parts", "strings"):
        trial = replace(draft, style=style)
        if finished := _probe(trial, [("user", True), ("assistant", False)] * 2, pictures=2):
            break
        if finished := _probe(trial, [("user", True), ("assistant", False)], pictures=1):
            break  # a model of one question and one picture
    else:
        raise ModelError(
            f"This model's chat template cannot place pictures: it writes no {token!r} for each.",
            "Choose a model with a chat template for pictures.",
        )
    system = _probe(trial, [("system", False), ("user", True)], pictures=1)
    asked = _probe(trial, [("user", True)], pictures=1, answer_next=True)
    not_an_end = {token, str(tokenizer.bos_token)}
    ends = _any_of([text for text in control if text not in not_an_end])
    found = re.match(rf"\s*({ends.pattern})", finished[-1])
    return replace(
        trial,
        system_role=bool(system),
        opening=asked[-1] if asked else "",
        end_token=found.group(1) if found else str(tokenizer.eos_token or ""),
    )


def _probe(
    known: Layout, turns: list[tuple[str, bool]], pictures: int, *, answer_next: bool = False
) -> list[str] | None:
    """The template's own text around the messages of a sample; None if it does not come out
    right.
    """
    filler = _Filler()
    contents = []
    for role, with_picture in turns:
        parts: list[Any] = [{"type": "image"}] if with_picture else []
        parts.append({"type": "text", "text": filler.put("text", role)})
        if known.style == "parts" or (known.style == "user parts" and role == "user"):
            contents.append({"role": role, "content": parts})
        else:
            text = "".join(part.get("text", known.image_token + "\n") for part in parts)
            contents.append({"role": role, "content": text})
    try:
        rendered = _run(known, contents, answer_next)
    except Exception:  # a template raises whatever it likes
        return None
    indices = [int(match.group(2)) for match in _STAND_IN.finditer(rendered)]
    around = _STAND_IN.sub("\0", rendered).split("\0")
    if set(indices) != set(range(len(turns))) or "'type'" in rendered or '"type"' in rendered:
        return None
    return around if sum(text.count(known.image_token) for text in around) == pictures else None


def _control_tokens(processor: Any, source: str, token: str) -> list[str]:
    """Special tokens, whatever other added token the template writes, and the placeholders of
    pictures and videos.

    Added tokens that are ordinary words of a model (Phi's runs of spaces, PaliGemma's `<loc0001>`)
    are text.
    """
    tokens = {token}
    for name in ("image_token", "video_token", "audio_token", "fake_image_token", "boi_token"):
        for owner in (processor, processor.tokenizer):
            if value := getattr(owner, name, None):
                tokens.add(str(value))
    for added in processor.tokenizer.added_tokens_decoder.values():
        if added.special or (added.content in source and not added.content.isspace()):
            tokens.add(added.content)
    return sorted((text for text in tokens if not text.isspace()), key=len, reverse=True)


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("", add_special_tokens=True)["input_ids"][:1] == [bos]


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, strings)) or "(?!)")
