"""The words that are written, two to six letters long, and near misses of them."""

import random

_TEXT = """
up on off in out no yes go me we us hi oh ok my by to do so an at it he she you its our was
all and are ask bad bag bat bed bee big bit box boy bus but can cap car cat cow cup cut dad day dog
door down draw duck each east easy eat egg end exit eye face fall far farm fast fat few find fire
fish five flag fly food foot for four fox free from frog full fun gate gift girl give gold good
gray green hand happy hat heart hello help hen her here high hill his home hop horse hot house how
hug ice jam jar jet job joy jump just keep key kid king kite lake lamp large last late leaf left
leg lemon less let life light like line lion list long look love low luck make man many map mat
maybe men milk mix moon more most mouse mouth music nest net never new next nice night nine nose
not now nut ocean old one open orange over owl page paint paper park party pen pet phone photo
piano pie pig pink pizza plan plant play plus poem pool post pull purple push queen quiet rain red
rest rice right ring river road robot rock roof room rose run sad safe sale salt sand save say
school sea seat see sell seven shell ship shoe shop show sign sing six size sky sleep slow small
smile snow
soap sock soft song soon soup south spoon star start stay step stone stop store street sugar sun
sweet swim table talk tall taxi tea team ten tent test thank that the them then they thin this
three tiger time tiny toast today top town toy train tree truck true try two uncle under van very
vote wait walk wall want warm wash watch water way wave well west wet what wheel when where white
who why wide win wind window wish with wolf wood word work world year yellow zebra zero zoo angel
apple arrow baby back bake ball band bank barn bath beach bean bear bell best bike bird black blue
boat body bone book bowl brave bread bridge bring brown brush bucket butter button cake call camp
candle candy card care castle chair change cheese cherry child circle city clean clock close cloud
coat coffee cold color cook cookie corn count cream crown dance danger dark dear desk dinner
dream dress drink drive drum dust earth edge eight enter family father finger flower flute forest
friend fruit game garden ghost glass goat grape grass great guitar hair hammer hotel island jelly
juice jungle kitten ladder letter light little lunch magic market mirror money monkey mother mug
nature nurse office orange oven parrot pencil pepper pillow planet pocket police potato prince
public pupil puppy puzzle rabbit radio rocket salad shadow silver sister soccer spider spring
square summer sunny ticket tiger tomato turtle valley violet winter wonder yogurt
"""
WORDS = tuple(sorted(set(_TEXT.split())))
HELD_OUT_WORDS = frozenset(WORDS[3::7])
TRAINING_WORDS = tuple(w.upper() for w in WORDS if w not in HELD_OUT_WORDS)
SIMILAR_LETTERS = {
    "A": "RH",
    "B": "PRE",
    "C": "GO",
    "D": "OP",
    "E": "FB",
    "F": "EP",
    "G": "CO",
    "H": "NK",
    "I": "LT",
    "J": "IU",
    "K": "XR",
    "L": "IE",
    "M": "NW",
    "N": "MH",
    "O": "CD",
    "P": "RB",
    "Q": "O",
    "R": "PB",
    "S": "Z",
    "T": "IF",
    "U": "VJ",
    "V": "YU",
    "W": "MV",
    "X": "KY",
    "Y": "VT",
    "Z": "S",
}


def misread(word: str, rng: random.Random) -> str:
    """Return a near miss, with one character replaced by a similar one, or another word."""
    if rng.random() < 0.3 and word.isalpha():
        other = rng.choice(TRAINING_WORDS)
        return other if other != word else other + "S"
    at = rng.randrange(len(word))
    similar = SIMILAR_LETTERS.get(word[at]) or "".join(d for d in "0123456789" if d != word[at])
    return word[:at] + rng.choice(similar) + word[at + 1 :]
