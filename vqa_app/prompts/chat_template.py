"""Render conversations with a model's chat template, and record where each message's text is.

A template is rendered with a placeholder for every message text, and the texts are filled in
afterwards. This has three advantages:

- The boundaries of each answer are known exactly, whatever the template writes around it.
- No message text can be mistaken for an image token or a control token.
- A template that searches or rewrites message texts (Qwen3 does so with `<think>`) leaves them
  unchanged.

Each placeholder is surrounded by em spaces, which no template writes itself. Where they are missing
from the output, the template strips its message texts, so this module strips them too.
"""

from __future__ import annotations

import itertools
import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from vqa_app.errors import DataError, ModelError, library_reason
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation, Message

TEMPLATE_ARGUMENTS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Arguments given to every template. Answers are short, so reasoning is switched off (Qwen3). The
date is fixed so that a prompt does not change from day to day (Llama 3 writes the date; this is its
own default)."""

SegmentKind: TypeAlias = Literal["template", "text", "answer", "frame"]
ContentStyle: TypeAlias = Literal["parts", "user parts", "strings"]

_OPEN, _CLOSE, _SPACE = "\ue000", "\ue001", "\u2003"
_PLACEHOLDER = re.compile(f"({_SPACE}?){_OPEN}(\\d+){_CLOSE}({_SPACE}?)")


@dataclass(frozen=True)
class Segment:
    """A stretch of the rendered text.

    `template` is written by the template; `text` is a system or user text; `answer` is an
    assistant's text; `frame` is what the model must write around an answer: a leading space and
    the end token.
    """

    kind: SegmentKind
    text: str


@dataclass(frozen=True)
class TemplateInfo:
    """Properties of a processor's chat template, found by rendering samples."""

    source: str
    """The Jinja template."""
    style: ContentStyle
    """The form of message contents: lists of parts, lists for users only, or strings."""
    image_token: str
    """What the template writes for a picture."""
    adds_bos: bool
    """Whether the tokenizer puts its beginning-of-sequence token before a text."""
    system_role: bool
    """Whether system messages are supported. If not, their text goes before the first user's."""
    generation_prompt: str
    """What the template writes between a question and the answer to be generated."""
    end_token: str
    """The token that ends an answer; empty if the tokenizer has none."""
    control: re.Pattern[str]
    """Matches strings that the tokenizer may read as something other than text."""
    special_tokens: dict[str, str]
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)
    """Held while tokenising, because threads must not share a fast tokenizer."""


@dataclass
class _Placeholders:
    """The placeholders of a conversation, and the text that each one replaces."""

    texts: list[tuple[SegmentKind, str]] = field(default_factory=list)

    def add(self, kind: SegmentKind, text: str) -> str:
        self.texts.append((kind, text))
        return f"{_SPACE}{_OPEN}{len(self.texts) - 1}{_CLOSE}{_SPACE}"


_cache: weakref.WeakKeyDictionary[Any, TemplateInfo] = weakref.WeakKeyDictionary()
_cache_lock = threading.Lock()


def template_info(processor: Any) -> TemplateInfo:
    """Return the properties of the processor's template, cached after the first call.

    Raises:
        ModelError: There is no template, or it cannot place pictures.
    """
    source = chat_template(processor)
    with _cache_lock:  # two threads must not get two values, each with its own lock
        info = _cache.get(processor)
        if info is None or info.source != source:
            info = _cache[processor] = _analyse(processor, source)
        return info


def chat_template(processor: Any) -> str:
    """Return the chat template of the processor or else of its tokenizer.

    Raises:
        ModelError: Neither has one.
    """
    for owner in (processor, processor.tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return str(template)
    raise ModelError(
        "This model has no chat template.",
        "Choose an instruction-tuned model, or add a chat_template.jinja beside its config.json.",
    )


def image_token(processor: Any) -> str:
    """Return the string that represents a picture before it is expanded to its image tokens."""
    return str(getattr(processor, "image_token", None) or "<image>")


def render(
    info: TemplateInfo,
    conversation: Conversation,
    *,
    answer_next: bool,
    question_incomplete: bool = False,
) -> list[Segment]:
    """Render the conversation as segments of text, with one `image_token` per picture.

    Args:
        info: Properties of the template.
        conversation: The messages to render.
        answer_next: Add the generation prompt at the end.
        question_incomplete: Stop before the text of the last user message, which may still be
            missing.

    Raises:
        DataError: The template cannot express this conversation.
    """
    messages = conversation.messages if info.system_role else _fold_system(conversation)
    if question_incomplete and not (messages and messages[-1].role == "user"):
        messages = (*messages, Message("user", ()))
    placeholders = _Placeholders()
    contents = [_content(info, message, placeholders) for message in messages[:-1]]
    question = None
    if messages:
        folded = len(messages) == 1 and not info.system_role and conversation.system is not None
        question = len(placeholders.texts) + folded if question_incomplete else None
        contents.append(_content(info, messages[-1], placeholders, question))
    try:
        rendered = _run(info, contents, answer_next and not question_incomplete)
    except Exception as error:  # templates may raise anything
        raise DataError(
            f"The model's chat template rejects this conversation{library_reason(error)}",
            "User and assistant must take turns, beginning with the user.",
        ) from error
    segments = _split(rendered, placeholders, stop=question)
    missing = sum(
        f"{_OPEN}{index}{_CLOSE}" not in rendered
        for index in range(len(placeholders.texts[:question]))
    )
    if missing:
        raise DataError(
            f"The model's chat template omits {missing} of the messages.",
            "Use a model whose template renders whole conversations.",
        )
    return _mark_frames(segments, info)


def _fold_system(conversation: Conversation) -> tuple[Message, ...]:
    """Put the system text before the first user's text, as Gemma's template does."""
    if conversation.system is None:
        return conversation.messages
    first, *rest = conversation.dialogue or (Message("user", ()),)
    return (Message("user", (conversation.system + "\n\n", *first.parts)), *rest)


def _content(
    info: TemplateInfo, message: Message, placeholders: _Placeholders, question: int | None = None
) -> dict[str, Any]:
    """Return the message in the template's own form, its texts replaced by placeholders.

    If `question` is the number of the next placeholder, one is added for it at the end.
    """
    kind: SegmentKind = "answer" if message.role == "assistant" else "text"
    parts: list[Any] = []
    for is_picture, group in itertools.groupby(
        message.parts, key=lambda part: isinstance(part, Picture)
    ):
        if is_picture:
            parts += [{"type": "image"} for _ in group]
        # Adjacent texts are one: some templates trim each, and an answer has one end token.
        elif text := "".join(map(str, group)):
            parts.append({"type": "text", "text": placeholders.add(kind, text)})
    if not parts or question == len(placeholders.texts):
        parts.append({"type": "text", "text": placeholders.add(kind, "")})
    return _message(info, message.role, parts)


def _message(info: TemplateInfo, role: str, parts: list[Any]) -> dict[str, Any]:
    """Return a message with its content as a list of parts or as a string, as the style asks."""
    if info.style == "parts" or (info.style == "user parts" and role == "user"):
        return {"role": role, "content": parts}
    text = "".join(part.get("text", info.image_token + "\n") for part in parts)
    return {"role": role, "content": text}


def _run(info: TemplateInfo, messages: list[dict[str, Any]], answer_next: bool) -> str:
    from vqa_app.transformers_internals import render_chat_template

    variables = {**info.special_tokens, **TEMPLATE_ARGUMENTS}
    return render_chat_template(info.source, messages, answer_next, **variables)


def _split(rendered: str, placeholders: _Placeholders, stop: int | None) -> list[Segment]:
    """Split rendered text at its placeholders and fill them in, up to the placeholder `stop`."""
    segments: list[Segment] = []
    last = 0
    for match in _PLACEHOLDER.finditer(rendered):
        left, index, right = match.group(1), int(match.group(2)), match.group(3)
        segments.append(Segment("template", rendered[last : match.start()]))
        last = match.end()
        if index == stop:
            return _without_empty(segments)
        kind, text = placeholders.texts[index]
        text = text if left else text.lstrip()
        segments.append(Segment(kind, text if right else text.rstrip()))
    segments.append(Segment("template", rendered[last:]))
    return _without_empty(segments)


def _without_empty(segments: Sequence[Segment]) -> list[Segment]:
    """Drop empty segments, but keep empty answers."""
    return [segment for segment in segments if segment.text or segment.kind == "answer"]


def _mark_frames(segments: Sequence[Segment], info: TemplateInfo) -> list[Segment]:
    """Mark what the model must write around each answer, and add end tokens where none are.

    Vicuna-style templates on the hub end an answer with a space and "USER:". LLaVA-1.5 was trained
    with `</s>` there, and without an end token a model never learns to stop. Whitespace between an
    answer and its end token (Llama 2), or between the generation prompt and an answer (Vicuna), is
    written by the model, so it is trained together with the answer.
    """
    ending = re.compile(r"\s*" + re.escape(info.end_token))
    result: list[Segment] = []
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
        text = segment.text
        if result and result[-1].kind == "answer" and info.end_token:
            match = ending.match(text) if segment.kind == "template" else None
            result.append(Segment("frame", match.group() if match else info.end_token))
            text = text[match.end() :] if match else text
        if segment.kind == "template" and following and following.kind == "answer":
            lead = text.removeprefix(info.generation_prompt)
            if lead.isspace() and lead != text:
                result += [Segment("template", info.generation_prompt), Segment("frame", lead)]
                continue
        result.append(Segment(segment.kind, text))
    if result and result[-1].kind == "answer" and info.end_token:
        result.append(Segment("frame", info.end_token))
    return _without_empty(result)


def _analyse(processor: Any, source: str) -> TemplateInfo:
    """Render samples to find out how the template behaves.

    Raises:
        ModelError: The template does not write one image token per picture.
    """
    tokenizer = processor.tokenizer
    token = image_token(processor)
    control = _control_tokens(processor, source, token)
    draft = TemplateInfo(
        source=source,
        style="parts",
        image_token=token,
        adds_bos=_adds_bos(tokenizer),
        system_role=True,
        generation_prompt="",
        end_token="",
        control=_any_of(control),
        special_tokens={
            key: value
            for key, value in tokenizer.special_tokens_map.items()
            if isinstance(value, str)
        },
    )
    styles: tuple[ContentStyle, ...] = ("parts", "user parts", "strings")
    for style in styles:
        trial = replace(draft, style=style)
        if finished := _probe(trial, [("user", True), ("assistant", False)] * 2, pictures=2):
            break
        if finished := _probe(trial, [("user", True), ("assistant", False)], pictures=1):
            break  # a model for one question about one picture
    else:
        raise ModelError(
            f"This model's chat template cannot place pictures: it does not write {token!r} for"
            " each.",
            "Choose a model with a chat template for pictures.",
        )
    system = _probe(trial, [("system", False), ("user", True)], pictures=1)
    question = _probe(trial, [("user", True)], pictures=1, answer_next=True)
    not_an_end = {token, str(tokenizer.bos_token)}
    ends = _any_of([text for text in control if text not in not_an_end])
    found = re.match(rf"\s*({ends.pattern})", finished[-1])
    return replace(
        trial,
        system_role=bool(system),
        generation_prompt=question[-1] if question else "",
        end_token=found.group(1) if found else str(tokenizer.eos_token or ""),
    )


def _probe(
    info: TemplateInfo, turns: list[tuple[str, bool]], pictures: int, *, answer_next: bool = False
) -> list[str] | None:
    """Return the template's text around the messages of a sample, or None if it renders wrongly.

    Args:
        info: The properties to try.
        turns: Role of each message, and whether it has a picture.
        pictures: How many image tokens are expected.
        answer_next: Add the generation prompt.
    """
    placeholders = _Placeholders()
    contents = []
    for role, with_picture in turns:
        parts: list[Any] = [{"type": "image"}] if with_picture else []
        parts.append({"type": "text", "text": placeholders.add("text", role)})
        contents.append(_message(info, role, parts))
    try:
        rendered = _run(info, contents, answer_next)
    except Exception:  # templates may raise anything
        return None
    indices = [int(match.group(2)) for match in _PLACEHOLDER.finditer(rendered)]
    around = _PLACEHOLDER.sub("\0", rendered).split("\0")
    if set(indices) != set(range(len(turns))) or "'type'" in rendered or '"type"' in rendered:
        return None
    return around if sum(text.count(info.image_token) for text in around) == pictures else None


def _control_tokens(processor: Any, source: str, token: str) -> list[str]:
    """Return the strings that message texts must not be read as, longest first.

    These are the special tokens, any other added token that the template writes, and the
    placeholders of pictures and videos. Added tokens that are ordinary words of a model (Phi's runs
    of spaces, PaliGemma's `<loc0001>`) count as text.
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
    ids = tokenizer("", add_special_tokens=True)["input_ids"]
    return bos is not None and list(ids[:1]) == [bos]


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of these strings; with none given it never matches."""
    return re.compile("|".join(map(re.escape, strings)) or "(?!)")
