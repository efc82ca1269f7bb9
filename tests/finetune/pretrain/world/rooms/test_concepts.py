"""The tables of things that icons and photographs show."""

from collections import Counter

from finetune.pretrain.world.rooms.concepts import noun_phrase
from finetune.pretrain.world.rooms.icons.store import icon_concepts
from finetune.pretrain.world.rooms.photos.store import TINY_IMAGENET_CLASSES, photo_classes


def test_every_icon_and_every_folder_belongs_to_one_concept() -> None:
    for concepts in (icon_concepts(), photo_classes()):
        keys = Counter(key for concept in concepts for key in concept.keys)
        assert [key for key, times in keys.items() if times > 1] == []


def test_no_two_icon_concepts_share_a_name() -> None:
    names = Counter(name for concept in icon_concepts() for name in concept.names)
    assert [name for name, times in names.items() if times > 1] == []
    assert len(icon_concepts()) >= 400


def test_tiny_imagenet_comes_first() -> None:
    folders = [concept.keys[0] for concept in photo_classes()]
    assert all(folder[0] == "n" and folder[1:].isdigit() for folder in folders[:200])
    assert len(folders) == TINY_IMAGENET_CLASSES + 10


def test_a_kind_in_brackets_is_not_used_as_a_word() -> None:
    by_name = {concept.name: concept for concept in icon_concepts()}
    assert by_name["dog"].words == ("dog", "animal")
    assert by_name["car"].words == ("car", "vehicle")
    assert by_name["microphone"].words == ("microphone",)


def test_noun_phrases_have_an_article_only_if_countable() -> None:
    assert noun_phrase("apple") == "an apple"
    assert noun_phrase("bus") == "a bus"
    assert noun_phrase("grapes") == "grapes"
