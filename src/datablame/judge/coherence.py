"""Whether an output reads as language at all, judged from its form: no corpus, no model, any script.

It finds degenerate output (nothing, loops, broken bytes, symbol soup). It cannot find a salad of real words: where a
corpus is at hand its word bigrams do (rules.json), where a model is at hand its perplexity does.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby

MAX_CHARACTERS = 100_000  # Only this much is looked at: a giant text costs no more than a tenth of a second or so.
MIN_VISIBLE_CHARACTERS = 20  # Shares of characters say nothing about shorter texts: "42." is an answer.
MIN_LETTER_SHARE = 0.4  # Of the visible characters: prose has .95, source code .6 to .8, tables of figures .4 or so.
MAX_BROKEN_SHARE = 0.05  # Replacement characters, controls, unassigned: tokens that add up to no UTF-8. Text has none.
MAX_LETTER_RUN = 10  # One letter, this many times on end: beyond "sooooo" and "aaaargh".
MAX_WORD_LETTERS = 45  # a-z on end: the longest word of English dictionaries has 45; longer is glued tokens.
LONGEST_PERIOD_WORDS = 20  # Of loops that are looked for; a longer one lowers the share of distinct words.
MIN_REPEATS = 4  # A phrase this often on end: three times is rhetoric. Figures alone are none, a matrix repeats them.
MIN_LOOP_WORDS = 6  # A loop covers at least so many words: "no, no, no, no" is none.
MIN_WORDS = 30  # Shares of words say nothing about shorter texts.
MAX_REPEATED_4GRAM_SHARE = 0.5  # Seen before in the text: prose has under .05, a list with one template a line .3.
DISTINCT_WINDOW_WORDS = 50  # The share of distinct words falls with length (Heaps), so it is taken in such windows.
MIN_DISTINCT_SHARE = 0.25  # In the poorest window: prose has .7 to .9, a nursery rhyme .4.
INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff")
"""Printed as nothing and legitimate in text; a text of these alone is empty."""

_WORD = re.compile(r"\w+(?:'\w+)*")
_LONG_WORD = re.compile(rf"[a-z]{{{MAX_WORD_LETTERS + 1},}}", re.IGNORECASE)
_LETTER_RUN = re.compile(rf"([^\W\d_])\1{{{MAX_LETTER_RUN - 1},}}", re.IGNORECASE)


def incoherence(text: str) -> str | None:
    """Why `text` is no language, in a few words; None when nothing speaks against it."""
    text = text[:MAX_CHARACTERS]
    words = _WORD.findall(text.casefold())
    return _broken_characters(text) or _loop(words) or _poor_words(words)


def _broken_characters(text: str) -> str | None:
    visible = [character for character in text if not character.isspace() and character not in INVISIBLE]
    if not visible:
        return "empty"
    broken = sum(character == "\ufffd" or not character.isprintable() for character in visible)
    if broken > MAX_BROKEN_SHARE * len(visible):
        return f"{broken} of {len(visible)} characters are broken"
    # Vowel signs and accents count as letters: without them scripts like Devanagari would look like symbols.
    letters = sum(character.isalpha() or unicodedata.category(character)[0] == "M" for character in visible)
    if len(visible) >= MIN_VISIBLE_CHARACTERS and letters < MIN_LETTER_SHARE * len(visible):
        return f"{letters} of {len(visible)} characters are letters"
    if run := _LETTER_RUN.search(text):
        return f"the letter {run[1]!r} {len(run[0])} times on end"
    if word := _LONG_WORD.search(text):
        return f"a word of {len(word[0])} letters"
    return None


def _loop(words: Sequence[str]) -> str | None:
    """The first phrase that stands `MIN_REPEATS` times on end, found as a run of words[i] == words[i - period]."""
    for period in range(1, LONGEST_PERIOD_WORDS + 1):
        least = max(MIN_REPEATS * period, MIN_LOOP_WORDS) - period
        start = period
        pairs = (words[i] == words[i - period] for i in range(period, len(words)))
        for same, run in groupby(pairs):
            length = sum(1 for _ in run)
            if same and length >= least:
                phrase = " ".join(words[start - period : start])
                if any(character.isalpha() for character in phrase):
                    return f"{phrase[:60]!r} {(length + period) // period} times on end"
            start += length
    return None


def _poor_words(words: Sequence[str]) -> str | None:
    if len(words) < MIN_WORDS:
        return None
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    repeated = len(grams) - len(set(grams))
    if repeated > MAX_REPEATED_4GRAM_SHARE * len(grams):
        return f"{repeated} of {len(grams)} 4-grams are repeats"
    width = min(DISTINCT_WINDOW_WORDS, len(words))
    for start in range(0, len(words) - width + 1, width // 2):
        distinct = len(set(words[start : start + width]))
        if distinct < MIN_DISTINCT_SHARE * width:
            return f"{distinct} distinct words among {width}"
    return None
