"""Compare the engine with plain transformers in a conversation: first token, speed, memory.

    python -m tests.benchmarks.generation builtin
    python -m tests.benchmarks.generation real-size

"Plain" uses transformers alone: at each turn the processor reads the whole conversation with its
pictures and `generate` answers it, with a streamer attached. Both sides take the same greedy turns
alternately in one process; figures are medians over the rounds, each with a new picture. The engine
is timed by the reader of its stream, plain transformers in its streamer, which is before a reader
has the text. Memory is the peak of processes that run one side only. Times depend on the machine
and its load; ratios hardly do.

`real-size` is a LLaVA of random bf16 weights in the shape of SigLIP-so400m/14-384 and Qwen1.5-0.5B.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

QUESTIONS = (
    "Describe the picture .",
    "What is on the left ?",
    "What colour is it ?",
    "How many are there ?",
    "What else is there to see ?",
)
REAL_SIZE = "real-size"
SIDES = ("plain", "engine")

clock = time.perf_counter


@dataclass(frozen=True)
class Turn:
    """The timing and text of one answer."""

    first_token: float
    """Seconds."""
    rate: float
    """Tokens per second after the first."""
    tokens: int
    text: str


def load(name: str) -> Any:
    if name == REAL_SIZE:
        return real_size()
    from vqa_app.checkpoints.loader import load_model

    return load_model(name)


def real_size() -> Any:
    """Build a LLaVA of a common size, about a billion parameters, with random weights."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.initialization import no_init_weights
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    from vqa_app.checkpoints.loader import LoadedModel
    from vqa_app.models.architecture import Capabilities

    words = word_tokenizer(151_936)
    config = LlavaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": len(words),
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=729,
    )
    torch.set_default_dtype(torch.bfloat16)
    with no_init_weights():
        model = LlavaForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.02, generator=generator)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 384, "width": 384}),
        words,
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=words.chat_template,
    )
    return LoadedModel(
        model, processor, Capabilities.of(model, processor), REAL_SIZE, None, None, "", Path()
    )


def word_tokenizer(size: int) -> Any:
    """Build a tokenizer of `size` words, so that any output of random weights can be decoded."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    questions = sorted({word for text in (*QUESTIONS, "user assistant") for word in text.split()})
    fillers = [f"w{number}" for number in range(size - len(special) - len(questions))]
    vocabulary = {word: index for index, word in enumerate([*special, *questions, *fillers])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=special,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    words.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return words


class PlainChat:
    """A conversation written with transformers alone."""

    def __init__(self, loaded: Any, picture: Any) -> None:
        self.model, self.processor = loaded.model, loaded.processor
        self.messages: list[dict[str, Any]] = []
        self.picture = picture

    def ask(self, question: str, max_new_tokens: int) -> Turn:
        import torch
        from transformers import TextIteratorStreamer

        times: list[float] = []

        class Streamer(TextIteratorStreamer):
            def put(self, value: Any) -> None:
                times.append(clock())
                super().put(value)

        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if not self.messages:
            content.insert(0, {"type": "image", "image": self.picture.image})
        self.messages.append({"role": "user", "content": content})
        start = clock()
        inputs = self.processor.apply_chat_template(
            self.messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        streamer = Streamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "streamer": streamer}
        with torch.inference_mode():
            thread = threading.Thread(
                target=self.model.generate, kwargs={**inputs, **settings}, daemon=True
            )
            thread.start()
            text = "".join(streamer)
            thread.join()
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        tokens = times[1:]  # the prompt is put first
        rate = (len(tokens) - 1) / (tokens[-1] - tokens[0]) if len(tokens) > 1 else 0.0
        return Turn(tokens[0] - start, rate, len(tokens), text)


class EngineChat:
    """The same conversation with the engine."""

    def __init__(self, engine: Any, picture: Any) -> None:
        from vqa_app.prompts.conversation import Conversation

        self.engine, self.picture = engine, picture
        self.conversation = Conversation()

    def warm(self) -> None:
        from vqa_app.prompts.conversation import Conversation

        self.engine.warm(Conversation.ask("", [self.picture]))

    def ask(self, question: str, max_new_tokens: int) -> Turn:
        from vqa_app.engine.protocol import GenerationOptions, Status
        from vqa_app.prompts.conversation import Message

        pictures = [] if self.conversation.messages else [self.picture]
        self.conversation = self.conversation.then(Message.user(question, pictures))
        options = GenerationOptions(max_new_tokens=max_new_tokens, temperature=0.0)
        start, times = clock(), []
        for event in self.engine.stream(self.conversation, options):
            if not isinstance(event, Status):
                times.append(clock())  # texts, then the answer's end
        self.conversation = self.conversation.then(Message.assistant(event.text))
        # From the first token to the last text: pieces that the reader receives together would
        # otherwise count as generated in no time.
        spent = times[max(0, len(times) - 2)] - (start + event.seconds_to_first_token)
        rate = (event.new_tokens - 1) / spent if event.new_tokens > 1 else 0.0
        return Turn(times[0] - start, rate, event.new_tokens, event.text)


def new_picture(name: str, number: int) -> Any:
    """Return noise, or a generated scene for the built-in model, which refuses noise."""
    from vqa_app.pictures.picture import open_picture

    if name == "builtin":
        from finetune.pretrain.world import sample_scene

        return open_picture(sample_scene(number, "shapes")[0])
    noise = np.random.default_rng(number).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    return open_picture(Image.fromarray(noise))


def talk(chat: Any, max_new_tokens: int, turns: int = len(QUESTIONS)) -> list[Turn]:
    return [chat.ask(question, max_new_tokens) for question in QUESTIONS[:turns]]


def compare(name: str, rounds: int, max_new_tokens: int) -> None:
    from vqa_app.engine.local import LocalEngine

    loaded = load(name)
    copied = replace(loaded, model=copy.deepcopy(loaded.model))
    engine = LocalEngine(copied)
    for chat in (PlainChat(loaded, new_picture(name, 0)), EngineChat(engine, new_picture(name, 0))):
        talk(chat, 4, turns=2)  # warm-up
    results: dict[str, list[list[Turn]]] = defaultdict(list)
    for number in range(1, rounds + 1):
        picture, other = new_picture(name, 2 * number), new_picture(name, 2 * number + 1)
        results["plain"].append(talk(PlainChat(loaded, picture), max_new_tokens))
        results["engine"].append(talk(EngineChat(engine, picture), max_new_tokens))
        prepared = EngineChat(engine, other)
        prepared.warm()
        results["warmed"].append(talk(prepared, max_new_tokens, turns=1))
    report(name, engine.info, results)
    engine.close()


def report(name: str, info: Any, results: dict[str, list[list[Turn]]]) -> None:
    def first_token(side: str, turns: slice) -> float:
        return statistics.median(turn.first_token for talk in results[side] for turn in talk[turns])

    def rate(side: str) -> float:
        return statistics.median(turn.rate for talk in results[side] for turn in talk if turn.rate)

    one, later = slice(0, 1), slice(1, None)
    rows = [
        ("time to first token, turn 1, cold", "plain", "engine", one),
        ("time to first token, turn 1, warmed", "plain", "warmed", one),
        ("time to first token, turns 2 to 5", "plain", "engine", later),
    ]
    rounds = len(results["plain"])
    print(f"\n### {name}: {info.parameters / 1e6:.0f} M parameters, {info.dtype}, {info.device}\n")
    print("| | plain | engine | ratio |\n|---|---|---|---|")
    for label, plain, engine, turns in rows:
        a, b = first_token(plain, turns), first_token(engine, turns)
        print(f"| {label} | {a * 1e3:.0f} ms | {b * 1e3:.0f} ms | {b / a:.3f} × |")
    a, b = rate("plain"), rate("engine")
    print(f"| tokens per second | {a:.1f} | {b:.1f} | {b / a:.2f} × |")
    memory = {side: peak_memory(name, side) for side in SIDES}
    print(
        f"| peak memory | {memory['plain']:.2f} GB | {memory['engine']:.2f} GB "
        f"| {memory['engine'] / memory['plain']:.2f} × |"
    )
    pairs = zip(results["plain"], results["engine"], strict=True)
    same = sum(plain[0].text.strip() == engine[0].text.strip() for plain, engine in pairs)
    print(f"\nwall-clock time, {rounds} rounds; {same} first answers are identical.")
    asked = [turn for talk in results["engine"] for turn in talk]
    seconds = [turn.first_token + turn.tokens / turn.rate for turn in asked if turn.rate]
    print(f"engine, question to complete answer: median {statistics.median(seconds):.2f} s.")
    if name != REAL_SIZE:
        loading = statistics.median(loading_seconds(name) for _ in range(3))
        print(f"loading, in addition to importing torch and transformers: {loading:.2f} s.")


def loading_seconds(name: str) -> float:
    """Return the loading time in a new process that has imported torch and transformers' LLaVA."""
    code = (
        "import sys, time; from transformers import LlavaForConditionalGeneration, LlavaProcessor; "
        "from transformers import LlamaForCausalLM, SiglipVisionModel; start = time.perf_counter();"
        "import vqa_app; vqa_app.load_model(sys.argv[1]); print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code, name]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def peak_memory(name: str, side: str) -> float:
    """Return the peak memory of one side in GB, measured in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.generation", name, "--memory-of", side]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def print_memory(name: str, side: str, max_new_tokens: int) -> None:
    loaded, picture = load(name), new_picture(name, 0)
    if side == "plain":
        talk(PlainChat(loaded, picture), max_new_tokens, turns=2)
    else:
        from vqa_app.engine.local import LocalEngine

        talk(EngineChat(LocalEngine(loaded), picture), max_new_tokens, turns=2)
    # Not `ru_maxrss`, which includes the memory of the parent at the time of the fork.
    (peak,) = re.findall(
        r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")
    )
    print(int(peak) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help=f"builtin, a folder, a hub id, or {REAL_SIZE}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(arguments.model, arguments.memory_of, arguments.max_new_tokens)
    else:
        compare(arguments.model, arguments.rounds, arguments.max_new_tokens)


if __name__ == "__main__":
    main()
