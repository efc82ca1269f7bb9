"""Packed batches are equivalent to the sequences that the chat template renders."""

import random

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.pretrain.curriculum import BatchPlan, make_question_batch
from finetune.pretrain.language import (
    CountHead,
    ReferentHeads,
    SymbolEmbedding,
    answer_loss,
    run_packed,
)
from finetune.pretrain.model import language_config, make_processor
from finetune.pretrain.patch_grid import PatchGrid
from finetune.pretrain.sequences import (
    PICTURE,
    Packer,
    PictureConversations,
    answer_hits,
    answer_starts,
    turn_hits,
    turns_of,
)
from finetune.pretrain.towers import TowerTrainingConfig, tower_config
from finetune.pretrain.world import ROOMS, make_scene
from finetune.pretrain.world.mixture import World
from finetune.pretrain.world.scene import QA

GRID = PatchGrid(64, 4)


@pytest.fixture(scope="module")
def parts(tokenizer: PreTrainedTokenizerFast) -> tuple[LlamaForCausalLM, SymbolEmbedding]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(language_config(len(tokenizer), tiny=True))
    return model, SymbolEmbedding(model.config.hidden_size, GRID.tokens)


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_branch_equals_the_rendered_chat_template(
    tokenizer: PreTrainedTokenizerFast, pictures: int
) -> None:
    packer = Packer(tokenizer)
    towers = tower_config(len(tokenizer), TowerTrainingConfig(1))
    processor = make_processor(tokenizer, towers.vision_config)
    scene = make_scene(4, "shapes")
    qas = ROOMS["shapes"].ask(scene, random.Random(4), "train")
    first = QA("existence", "Is there a star?", "yes", "Yes, there is a star.")
    for qa in [*qas, QA("followup", "What colour is it?", "red", "It is red.", before=(first,))]:
        turns = turns_of(qa, random.Random(0))
        packed = packer.pack([PictureConversations([64] * pictures, [turns])])
        real = packed.ids[0][packed.segments[0] >= 0].tolist()
        messages = []
        for k, (question, answer) in enumerate(turns):
            shown = [{"type": "image"}] * (pictures if k == 0 else 0)
            messages.append(
                {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
            )
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text = processor.apply_chat_template(messages, tokenize=False)
        expected = tokenizer(text.replace("<image>", "<image>" * 64)).input_ids
        assert real == expected[:-1]  # the template's final newline is not trained


def test_only_answers_and_their_end_tokens_are_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    packed = Packer(tokenizer).pack(
        [PictureConversations((3,), [[("Which?", "red"), ("Sure?", "yes")]])]
    )
    learned = packed.labels[0][packed.labels[0] != -100]
    assert tokenizer.decode(learned) == "red<|im_end|>yes<|im_end|>"


def test_packed_branches_equal_each_conversation_alone(
    tokenizer: PreTrainedTokenizerFast, parts: tuple[LlamaForCausalLM, SymbolEmbedding]
) -> None:
    """Compare loss and gradients with transformers' attention on one conversation at a time."""
    model, symbols = parts
    batch, _ = make_question_batch(
        Packer(tokenizer), 0, World({"shapes": 1.0}), GRID, BatchPlan(3, 3, False)
    )
    packed = batch.packed
    count = (packed.labels[:, 1:] != -100).sum()
    hidden, _ = run_packed(model, packed, symbols(batch.rows, False))
    loss, _ = answer_loss(model, hidden, packed)
    (loss * count).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    visual = symbols(batch.rows, False).detach()
    total, used = torch.zeros(()), 0
    for row in range(len(packed.ids)):
        here = int(packed.visual[row].sum())
        for number in range(1, int(packed.segments[row].max()) + 1):
            chosen = (packed.segments[row] == 0) | (packed.segments[row] == number)
            ids, labels = packed.ids[row][chosen][None], packed.labels[row][chosen]
            embeds = model.get_input_embeddings()(ids)
            places = (ids == tokenizer.convert_tokens_to_ids("<image>"))[..., None]
            embeds = embeds.masked_scatter(places, visual[used : used + here])
            logits = model(inputs_embeds=embeds).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(
                logits, labels[1:], ignore_index=-100, reduction="sum"
            )
        used += here
    total.backward()
    assert total.item() == pytest.approx((loss * count).item(), rel=1e-4)
    for mine, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-2, atol=1e-4)


def test_a_hit_is_an_answer_without_a_wrong_token(tokenizer: PreTrainedTokenizerFast) -> None:
    packed = Packer(tokenizer).pack(
        [PictureConversations((2,), [[("A?", "red star")], [("B?", "blue")]])]
    )
    best = torch.roll(packed.ids, -1, 1)  # a model that predicts every token correctly
    assert answer_hits(best, packed) == {(0, 1): True, (0, 2): True}
    second = (packed.segments[0] == 2) & (packed.labels[0] != -100)
    best[0, second.nonzero()[0] - 1] = 0
    assert answer_hits(best, packed) == {(0, 1): True, (0, 2): False}


def test_heads_read_the_token_before_an_answer(
    tokenizer: PreTrainedTokenizerFast, parts: tuple[LlamaForCausalLM, SymbolEmbedding]
) -> None:
    model, _ = parts
    batch, _ = make_question_batch(
        Packer(tokenizer), 0, World({"shapes": 1.0}), GRID, BatchPlan(3, 6, False)
    )
    torch.manual_seed(0)
    hidden = torch.randn(*batch.packed.ids.shape, model.config.hidden_size, requires_grad=True)
    ReferentHeads(model.config.hidden_size).loss(
        (hidden,), batch.packed, batch.referents
    ).backward()
    read = {(row, at) for row, at in hidden.grad.abs().sum(-1).nonzero().tolist()}
    starts = answer_starts(batch.packed)
    assert read == {(branch[0], starts[branch]) for branch in batch.referents}
    hidden.grad = None
    CountHead(model.config.hidden_size).loss((hidden,), batch.packed, batch.counts).backward()
    read = {(row, at) for row, at in hidden.grad.abs().sum(-1).nonzero().tolist()}
    prefix = (batch.packed.segments == 0).sum(1).tolist()
    assert read == {(row, prefix[row] - 1) for row in batch.counts}


def test_a_picture_that_comes_later_equals_the_rendered_chat_template(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    turns = [("Is it red?", "yes"), (PICTURE + "And this?", "no"), ("Sure?", "yes")]
    packed = Packer(tokenizer).pack([PictureConversations((3,), [turns], (5,))])
    towers = tower_config(len(tokenizer), TowerTrainingConfig(1))
    processor = make_processor(tokenizer, towers.vision_config)
    messages = []
    for k, (question, answer) in enumerate(turns):
        content = [{"type": "text", "text": question.removeprefix(PICTURE)}]
        shown = [{"type": "image"}] * (k < 2)
        messages.append({"role": "user", "content": [*shown, *content]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = processor.apply_chat_template(messages, tokenize=False)
    first, second, rest = text.split("<image>")
    expected = tokenizer(first + "<image>" * 3 + second + "<image>" * 5 + rest).input_ids
    assert packed.ids[0][packed.segments[0] >= 0].tolist() == expected[:-1]
    assert packed.visual.sum() == 8


def test_several_conversations_cannot_have_later_pictures(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(ValueError, match="single conversation"):
        Packer(tokenizer).pack([PictureConversations((), [[("A?", "b")], [("C?", "d")]], (2,))])


def test_hits_are_known_for_every_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("A?", "red star"), ("B?", "blue"), ("C?", "no")]
    packed = Packer(tokenizer).pack([PictureConversations((2,), [turns])])
    best = torch.roll(packed.ids, -1, 1)
    answers = (packed.labels[0] != -100).nonzero()[:, 0]
    starts = [int(at) for at in answers if packed.labels[0, at - 1] == -100]
    best[0, starts[1] - 1] = 0
    assert turn_hits(best, packed) == {(0, 1): [True, False, True]}


@pytest.mark.parametrize("text", ["Überall 😀 straße", "a\tb\n\n c", "STOP 1234", "<b>&amp;</b>"])
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_capitals_and_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("STOP") == list("STOP")
    assert tokenizer.tokenize("2026") == list("2026")
