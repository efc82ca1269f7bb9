"""The tokenizer of the built-in model, its chat template, and the text it is trained on."""

import pydoc_data.topics
import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetune.pretrain.world import ROOMS, make_scene
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import photo_classes
from finetune.pretrain.world.wording.phrasing import add_typing_noise
from vqa_app.prompts.conversation import SHORT_STYLE

IMAGE, START, END, PAD = "<image>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIALS = (PAD, START, END, IMAGE)
VOCABULARY = 6144

# ChatML. Contents are strings or lists of parts; a picture takes the place of its part.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
<image>{{ '\\n' }}
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""

# Ordinary words that ought to be whole tokens: what rooms draw, and what people say in questions.
EVERYDAY = """
house tree sun moon star cloud car bus truck train boat ship plane bicycle rocket balloon fish cat
dog bird rabbit mouse pig cow horse duck snake turtle butterfly bee spider snail face eye hand foot
apple banana pear orange lemon cherry grape strawberry carrot mushroom bread cake pizza egg ice
cream cup mug glass bottle bowl plate fork knife spoon pan pot teapot lamp candle bulb table chair
bed sofa door window clock watch key lock phone computer television camera book pencil pen brush
scissors hammer ladder umbrella hat shirt shoe sock trousers dress glove glasses ring crown flag
ball bell drum guitar kite gift box bag basket bucket flower leaf cactus mountain hill river sea
bridge road fence tent castle tower church robot ghost snowman anchor wheel traffic light sign
heart arrow cross magnet battery mailbox envelope letter dice domino digit number word chart bar
line pie slice label axis value title month year red green blue yellow black white gray grey brown
pink purple orange teal small big large little tall short wide narrow left right top bottom middle
above below under over behind front inside outside between near next beside first second third last
one two three four five six seven eight nine ten eleven twelve zero none unknown true false yes no
hello hi thanks thank you please sorry good morning goodbye bye help what can do who are your name
picture image photo scene shape thing object colour color size kind question answer sentence read
reads says written writing time hour minute o'clock half past quarter sum total plus minus times
more fewer less most least same different odd even count many much how where when why which is the
this that these those there here it they them he she we I am not don't doesn't isn't know tell see
look looks like show shows contain contains describe detail briefly caption world pictures drawn
drawings real photograph noise person people man woman child animal food sky grass water sand snow
window street city room kitchen garden day night summer winter dog's open closed happy sad smiling
""".split()  # noqa: SIM905

# Further common English words, so that text about other subjects is split sensibly.
COMMON = """
be have has had do does did done say said get got make made go going went gone come came take took
taken think thought want wanted use used find found give given gave work call called try tried ask
asked need needed feel felt become leave left put mean keep kept let begin seem help talk turn start
might run move live believe hold bring happen must provide sit stand lose pay meet include continue
set learn change lead understand watch follow stop create speak spend grow walk win offer remember
love consider appear buy wait serve die send expect build stay fall cut reach kill remain suggest
raise pass sell require report decide pull would could should may can't won't will shall about after
again against all also always another any anything around as ask at away back because been before
best better both but by can't day days down during each early end enough ever every everything
example fact family far few form free from full general great group had hand hard her him his home
however if important in into it's its itself job just kind large last late later life like line
little long lot main matter me mine moment money more most mother father much my name national never
new next night nothing now number of off often old on only or order other our out over own part
past place point possible power problem program public quite rather real really reason right room
same school several side since small so social some someone something sometimes soon state still
story such sure system than their theirs them themselves then there's therefore thing things though
through to today together tomorrow too toward town true under until up upon us usually very voice
was way we week well were what's whatever whether while white whole whose why wide with within
without word words world write year years yes yesterday yet you young your yours explain language
computer science history music quantum physics mathematics country capital France London Paris
Germany Europe America English German French Spanish Italian Sunday Monday Tuesday Wednesday
Thursday Friday Saturday January February March April June July August September October November
December grandmother grandfather sister brother child children friend friends teacher student doctor
question questions answer answers single phrase using describe user assistant system cannot
""".split()  # noqa: SIM905


def sentences(count: int, seed: int) -> Iterator[str]:
    """Yield questions and answers of `count` scenes of shapes, with typing noise.

    Shapes only, so that the vocabulary stays the same when the world grows.
    """
    for number in range(count):
        rng = random.Random(f"text-{seed}-{number}")
        for qa in ROOMS["shapes"].ask(make_scene(seed + number, "shapes"), rng, "train"):
            yield add_typing_noise(qa.question, rng)
            yield qa.sentence
            yield qa.short
    yield SHORT_STYLE


def corpus(scenes: int, seed: int) -> Iterator[str]:
    """Yield the text that the vocabulary is learned from: the world's, and Python's own help."""
    yield from sentences(scenes, seed)
    yield from pydoc_data.topics.topics.values()
    concepts = (*icon_concepts(), *photo_classes())
    named = [word for c in concepts for word in " ".join((*c.names, c.kind.strip("()"))).split()]
    for word in dict.fromkeys((*EVERYDAY, *named)):
        yield from [f"a {word} and the {word}s"] * 40
        yield from [word.capitalize(), word] * 12
    for word in COMMON:
        yield from [f"a {word} {word}"] * 20
    yield from [f"user\nassistant\nsystem{SHORT_STYLE}"] * 200


def train_tokenizer(scenes: int = 1500, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, so that any text round-trips.

    Digits and letters of words in capitals are tokens of their own, so that reading a sign or a
    number takes one token for each glyph.
    """
    tokenizer = Tokenizer(models.BPE())
    spelt = Regex(r"[A-Z](?=[A-Z])|(?<=[A-Z])[A-Z]|[0-9]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(spelt, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
    )
    tokenizer.train_from_iterator(corpus(scenes, seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, IMAGE],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=2048,
    )
    # One token instead of ten: most questions end with this instruction.
    fast.add_tokens([AddedToken(SHORT_STYLE.strip(), normalized=False)])
    fast.chat_template = CHAT_TEMPLATE
    return fast
