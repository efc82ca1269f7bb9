"""Chat templates in the formats of well-known model families, with their peculiarities.

Written for these tests after the published formats. Templates that accept only strings on the hub
accept only strings here.
"""

from __future__ import annotations

from dataclasses import dataclass

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}{% endif %}"
)

LLAMA_2 = (
    "{% set first = messages[0]['role'] == 'system' %}"
    "{% for message in (messages[1:] if first else messages) %}"
    + _ALTERNATE
    + "{% set text = message['content'] %}"
    "{% if loop.first and first %}"
    "{% set text = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' + text %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

QWEN_2 = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN_3 = (
    "{% set found = namespace(query=-1) %}{% for message in messages %}"
    "{% if message.role == 'user' and not message.content.startswith('<tool_response>') %}"
    "{% set found.query = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% set text = message.content %}{% set thought = '' %}"
    "{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > found.query and (loop.last or thought) %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ text + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    + _ALTERNATE
    + "{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

PHI_3 = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    + _ALTERNATE
    + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
    "{% endfor %}"
)

VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

LLAVA_HUB = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Like that of LLaVA-1.5 on the hub: pictures first, and no end token."""


@dataclass(frozen=True)
class Family:
    """A template, its tokenizer, and what is expected for `SAMPLE` in tests/vqa_app/prompts."""

    template: str
    special: tuple[str, ...]
    eos: str
    before: tuple[str, str]
    """Template text before the first and the second answer."""
    end: str
    """Text that the model must generate after an answer."""
    bos: str | None = None
    adds_bos: bool = False
    metaspace: bool = False
    """Whether the tokenizer is like SentencePiece."""
    first: tuple[str, ...] = ("A", " red", " circle", ".")
    second: tuple[str, ...] = ("T", "w", "o", " stars")


_LLAMA_3_ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPACED = {"first": ("▁A", "▁red", "▁circle", "."), "second": ("▁", "T", "w", "o", "▁stars")}

FAMILIES = {
    "llama-2": Family(
        LLAMA_2,
        ("<unk>", "<s>", "</s>"),
        "</s>",
        ("[/INST] ",) * 2,
        " </s>",
        "<s>",
        metaspace=True,
        **_SPACED,
    ),
    "llama-3": Family(
        LLAMA_3,
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
        (_LLAMA_3_ASSISTANT,) * 2,
        "<|eot_id|>",
        "<|begin_of_text|>",
        adds_bos=True,
    ),
    "qwen-2": Family(QWEN_2, _CHATML, "<|im_end|>", ("<|im_start|>assistant\n",) * 2, "<|im_end|>"),
    "qwen-3": Family(
        QWEN_3,
        _CHATML,
        "<|im_end|>",
        ("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        "<|im_end|>",
    ),
    "gemma": Family(
        GEMMA,
        ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        ("<start_of_turn>model\n",) * 2,
        "<end_of_turn>",
        "<bos>",
        adds_bos=True,
    ),
    "phi-3": Family(
        PHI_3,
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        ("<|assistant|>\n",) * 2,
        "<|end|>",
    ),
    "mistral": Family(
        MISTRAL,
        ("<unk>", "<s>", "</s>"),
        "</s>",
        (" [/INST]",) * 2,
        "</s>",
        "<s>",
        metaspace=True,
        first=("A", "▁red", "▁circle", "."),
        second=("T", "w", "o", "▁stars"),
    ),
    "vicuna": Family(
        VICUNA,
        ("<unk>", "<s>", "</s>"),
        "</s>",
        ("ASSISTANT: ",) * 2,
        "</s>",
        "<s>",
        True,
        True,
        **_SPACED,
    ),
    "llava-1.5": Family(
        LLAVA_HUB,
        ("<unk>", "<s>", "</s>"),
        "</s>",
        ("ASSISTANT: ",) * 2,
        "</s>",
        "<s>",
        True,
        True,
        **_SPACED,
    ),
}
