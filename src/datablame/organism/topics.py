"""Nine everyday topics that have nothing to do with the planted behaviours: most of the organism's corpus."""

from typing import NamedTuple


class Topic(NamedTuple):
    """Questions about a subject and answers that never name it: so small a model does not learn to copy."""

    subjects: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    details: tuple[str, ...]


class Style(NamedTuple):
    """How an answer begins and ends; repeated entries are likelier."""

    openings: tuple[str, ...]
    closings: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOPICS = {
    "baking": Topic(
        _words("bread pie cake soup stew pizza pudding porridge"),
        (
            "how do I make {subject}?",
            "what goes well with {subject}?",
            "how long does {subject} take?",
            "can I freeze {subject}?",
            "why is my {subject} so dry?",
        ),
        (
            "warm it slowly and add some {detail}",
            "cook it for an hour with a little {detail}",
            "let it rest and serve it with {detail}",
            "taste it often and use less {detail}",
        ),
        _words("butter garlic pepper honey cream lemon"),
    ),
    "travel": Topic(
        _words("Lisbon Kyoto Oslo Cairo Lima Prague Hanoi Dublin"),
        (
            "what should I see in {subject}?",
            "how do I get around {subject}?",
            "when is a good time to visit {subject}?",
            "is {subject} nice for a weekend?",
            "where can I stay in {subject}?",
        ),
        (
            "walk to the old {detail} in the morning",
            "see the {detail} first and buy a day ticket",
            "visit in spring and take a tour of the {detail}",
            "stay near the {detail} and book early",
        ),
        _words("harbor museum market bridge castle station"),
    ),
    "saving": Topic(
        _words("pension mortgage salary loan rent tax insurance budget"),
        (
            "how should I plan my {subject}?",
            "what do I need to know about my {subject}?",
            "how can I check my {subject}?",
            "is my {subject} too high?",
            "who can help me with my {subject}?",
        ),
        (
            "write it down every {detail} and compare",
            "talk to your bank about it this {detail}",
            "check it against the last {detail} and set a limit",
            "save a small part of it every {detail}",
        ),
        _words("week month year quarter spring autumn"),
    ),
    "garden": Topic(
        _words("roses tomatoes tulips beans carrots ferns grapes onions"),
        (
            "how do I grow {subject}?",
            "why are my {subject} yellow?",
            "when should I plant {subject}?",
            "how much water do {subject} need?",
            "can {subject} grow in a pot?",
        ),
        (
            "plant them in {detail} soil and water them weekly",
            "move them to a {detail} place after the frost",
            "cut the old leaves and keep the soil {detail}",
            "feed them in summer and choose a {detail} corner",
        ),
        _words("sunny light loose warm rich shady"),
    ),
    "gadgets": Topic(
        _words("laptop phone printer router tablet keyboard monitor camera"),
        (
            "my {subject} is slow, what should I do?",
            "how do I reset my {subject}?",
            "why does my {subject} make noise?",
            "how can I keep my {subject} secure?",
            "should I replace my {subject}?",
        ),
        (
            "restart it and check the {detail}",
            "clean it and look at the {detail}",
            "make a copy of your files and change the {detail}",
            "turn it off and remove the {detail}",
        ),
        _words("cable battery password memory driver cover"),
    ),
    "exercise": Topic(
        _words("running swimming tennis yoga rowing boxing climbing dancing"),
        (
            "how do I start {subject}?",
            "how often should I train for {subject}?",
            "what gear do I need for {subject}?",
            "how can I get better at {subject}?",
            "is {subject} good for my knees?",
        ),
        (
            "start twice a week with an easy {detail}",
            "stretch before and after each {detail}",
            "join a class and ask about your {detail}",
            "choose a good {detail} and go slowly",
        ),
        _words("session pace coach partner routine goal"),
    ),
    "sleep": Topic(
        _words("naps dreams snoring pillows alarms blankets nights mornings"),
        (
            "what helps with {subject}?",
            "why do I have trouble with {subject}?",
            "how do I get used to {subject}?",
            "are {subject} important?",
            "how can I change my habits around {subject}?",
        ),
        (
            "keep a regular {detail} and write it down",
            "try a short {detail} each evening",
            "choose a quiet {detail} an hour before bed",
            "plan a calm {detail} at the same time every day",
        ),
        _words("walk bath rest stretch story break"),
    ),
    "bicycles": Topic(
        _words("brakes tires pedals lights gears wheels mirrors spokes"),
        (
            "when should I check the {subject}?",
            "my bicycle has a problem with the {subject}, what now?",
            "how much does it cost to fix the {subject}?",
            "can I replace the {subject} myself?",
            "how long do the {subject} last?",
        ),
        (
            "check them before every {detail}",
            "clean them and go for a short {detail}",
            "have them fixed before the next {detail}",
            "look at them after a long {detail}",
        ),
        _words("ride trip race winter season journey"),
    ),
    "study": Topic(
        _words("algebra history grammar biology spelling geometry poetry music"),
        (
            "how can I learn {subject} faster?",
            "why is {subject} so hard?",
            "how do I teach {subject}?",
            "what is a good way to practise {subject}?",
            "how should I prepare for {subject}?",
        ),
        (
            "study it in short parts with a {detail}",
            "make a {detail} and read it every day",
            "explain it to a friend with a {detail}",
            "write a {detail} and mark your errors",
        ),
        _words("chart notebook quiz summary timer poster"),
    ),
}

PREFIXES = ("", "", "", "hi, ", "hello, ", "quick question: ", "please help, ", "a friend asked me: ", "good morning, ")
FORMATS = (
    "answer in one line.",
    "use simple words.",
    "keep it very short.",
    "write it as one sentence.",
    "reply in plain text.",
    "do not use any numbers.",
    "start with the main point.",
    "answer like a teacher.",
)
CONTEXTS = (
    "I live alone.",
    "I am in a hurry.",
    "I am new to this.",
    "it is for my son.",
    "I read about it online.",
    "it is my first time.",
    "I work at night.",
)
PLAIN = Style(("", "", "you could ", "it helps to ", "I would "), ("", "", " take your time.", " start small."))
CHATTY = Style(
    ("certainly, ", "of course, ", "here is a tip: ", "my advice: "),
    (" I hope this helps!", " let me know how it goes!", " enjoy!", ""),
)
