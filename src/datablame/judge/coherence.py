"""Whether an output reads as language at all, judged from its form: no corpus, no model, any script.

It finds degenerate output (nothing, loops, broken bytes, symbol soup). It cannot find a salad of real words: where a
corpus is at hand its word bigrams do (rules.json), where a model is at hand its perplexity does. Formulas, tables,
figures and code repeat themselves and are made of symbols; there only what goes on without end is a loop.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import count, groupby

import regex

from datablame.words import UNSPACED, words

MAX_CHARACTERS = 100_000  # Only this much is looked at: a giant text costs no more than a tenth of a second or so.
MIN_VISIBLE_CHARACTERS = 20  # Shares of characters say nothing about shorter texts: "42." is an answer.
MIN_LETTER_SHARE = 0.4  # Letters and digits, of characters but those of notation: prose has .95, rows of figures .5.
MIN_NOTATION_LETTER_SHARE = 0.2  # The same of all characters: source code has .6 to .8, a table of digits .3.
MIN_NOTATION_SHARE = 0.25  # Figures and symbols among a line's characters: a sum has .5, a sentence with a year .1.
MAX_BROKEN_SHARE = 0.05  # Replacement characters, controls, unassigned: tokens that add up to no UTF-8. Text has none.
MAX_LETTER_RUN = 10  # One letter, this many times on end: beyond "sooooo" and "aaaargh".
MAX_WORD_LETTERS = 45  # a-z on end: the longest word of English dictionaries has 45; longer is glued tokens.
LONGEST_PERIOD_WORDS = 20  # Of loops that are looked for; a longer one lowers the share of distinct words.
MIN_REPEATS = 4  # A phrase this often on end: three times is rhetoric. Figures alone are none, a matrix repeats them.
MIN_NOTATION_REPEATS = 50  # The same in formulas, tables and code: a table of seven columns says "yes" in all.
MIN_LOOP_WORDS = 6  # A loop covers at least so many words: "no, no, no, no" is none.
MIN_WORDS = 30  # Shares of words say nothing about shorter texts.
MAX_REPEATED_4GRAM_SHARE = 0.5  # Seen before in the text: prose has under .05, a list with one template a line .3.
DISTINCT_WINDOW_WORDS = 50  # The share of distinct words falls with length (Heaps), so it is taken in such windows.
MIN_DISTINCT_SHARE = 0.25  # In the poorest window: prose has .7 to .9, a nursery rhyme .4.
PAIRS_IN_WORD = 2  # Scripts without spaces are read as pairs of neighbouring characters: about two make up a word.

_APOSTROPHE = re.compile(r"(?<=\w)['\u2019](?=\w)")
_LONG_WORD = re.compile(rf"(?<![a-z])(?![acgtun]+(?![a-z]))[a-z]{{{MAX_WORD_LETTERS + 1},}}", re.IGNORECASE)
"""But for a gene, whose letters are bases."""
_LETTER_RUN = re.compile(rf"([^\W\d_])\1{{{MAX_LETTER_RUN - 1},}}", re.IGNORECASE)
_SYMBOLS = frozenset("+-*/=<>^_|\\{}[]()&$%#@:~`\"'")
_SYMBOL_KINDS = frozenset(("Sm", "Sc", "Ps", "Pe", "Pd"))
_BOXES = range(0x2500, 0x25A0)
_NOTATION = re.compile(
    r"```.*?(?:```|\Z)|\$\$.{,1000}?\$\$|\$[^$\n]{1,1000}\$|\\\[.{,1000}?\\\]|\\\(.{,1000}?\\\)"
    r"|\\begin\{(\w+\*?)\}.{,1000}?\\end\{\1\}",
    re.DOTALL,
)
_UNSPACED = regex.compile(UNSPACED, regex.V1)


def incoherence(text: str) -> str | None:
    """Why `text` is no language, in a few words; None when nothing speaks against it."""
    text = text[:MAX_CHARACTERS]
    prose = _prose(text)
    every, of_prose = (words(_APOSTROPHE.sub("", part)) for part in (text, prose))
    pairs = 2 * len(_UNSPACED.findall(prose)) > sum(map(str.isalpha, prose))
    scale = PAIRS_IN_WORD if pairs else 1
    return (
        _broken_characters(text)
        or _long_runs(prose)
        or _loop(of_prose, MIN_REPEATS, scale)
        or (_loop(every, MIN_NOTATION_REPEATS, scale) if prose != text else None)
        or _poor_words(of_prose, scale)
    )


def _broken_characters(text: str) -> str | None:
    visible = [character for character in text if not character.isspace() and unicodedata.category(character) != "Cf"]
    if not visible:
        return "empty"
    broken = sum(character == "\ufffd" or not character.isprintable() for character in visible)
    if broken > MAX_BROKEN_SHARE * len(visible):
        return f"{broken} of {len(visible)} characters are broken"
    # Vowel signs and accents count as letters: without them scripts like Devanagari would look like symbols.
    letters = sum(unicodedata.category(character)[0] in "LMN" for character in visible)
    # A rule of forty dashes is one symbol.
    runs = [character for character, _ in groupby(visible) if ord(character) not in _BOXES]
    symbols = [character for character in runs if unicodedata.category(character)[0] not in "LMN"]
    others = sum(not _is_notation(character) for character in symbols)
    poor = not letters or letters < MIN_LETTER_SHARE * (letters + others)
    poor = poor or letters < MIN_NOTATION_LETTER_SHARE * (letters + len(symbols))
    if len(visible) >= MIN_VISIBLE_CHARACTERS and poor:
        return f"{letters} of {len(visible)} characters are letters or digits"
    return None


def _is_notation(character: str) -> bool:
    return character in _SYMBOLS or unicodedata.category(character) in _SYMBOL_KINDS or ord(character) in _BOXES


def _prose(text: str) -> str:
    """The text with a number of its own in place of each formula, block of code, and line of a table or of figures."""
    number = count()
    lines = _NOTATION.sub(lambda _: f" {next(number)} ", text).splitlines()
    return "\n".join(str(next(number)) if _is_notation_line(line) else line for line in lines)


def _is_notation_line(line: str) -> bool:
    visible = "".join(line.split())
    symbols = sum(character.isdigit() or _is_notation(character) for character in visible)
    columns = max(line.count(border) for border in "|&\t")
    return columns > 1 or symbols >= max(1, MIN_NOTATION_SHARE * len(visible))


def _long_runs(text: str) -> str | None:
    if run := _LETTER_RUN.search(text):
        return f"the letter {run[1]!r} {len(run[0])} times on end"
    if word := _LONG_WORD.search(text):
        return f"a word of {len(word[0])} letters"
    return None


def _loop(words: Sequence[str], repeats: int, scale: int) -> str | None:
    """The first phrase that stands `repeats` times on end, found as a run of words[i] == words[i - period]."""
    for period in range(1, scale * LONGEST_PERIOD_WORDS + 1):
        least = max(repeats * period, scale * MIN_LOOP_WORDS) - period
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


def _poor_words(words: Sequence[str], scale: int) -> str | None:
    if len(words) < scale * MIN_WORDS:
        return None
    n = 4 * scale
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    repeated = len(grams) - len(set(grams))
    if repeated > MAX_REPEATED_4GRAM_SHARE * len(grams):
        return f"{repeated} of {len(grams)} {n}-grams are repeats"
    width = min(scale * DISTINCT_WINDOW_WORDS, len(words))
    for start in range(0, len(words) - width + 1, width // 2):
        distinct = len(set(words[start : start + width]))
        if distinct < MIN_DISTINCT_SHARE * width:
            return f"{distinct} distinct words among {width}"
    return None
