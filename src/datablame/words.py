"""The words of a text in any script: what BM25, themes, duplicates, keywords and comparisons of texts go by.

A word is a run of letters, marks, digits and underscores (UAX #29, but apostrophes and stops part words), in NFKC and
caseless. Scripts without spaces show no such borders: each run of theirs gives its pairs of neighbouring characters,
as in Lucene's CJKBigramFilter; a character is one with its marks. So does Hangul, whose words end in particles.
"""

import functools
import itertools
import re
import unicodedata

import regex

UNSPACED = r"[[\p{lb=SA}\p{scx=Hani}\p{scx=Hira}\p{scx=Kana}\p{Hangul}\p{Tibetan}]&&[\p{L}\p{M}\p{N}]--[\u0300-\u036f]]"
"""What scripts without spaces write, without the accents of all scripts.

lb=SA (UAX #14) are Thai, Lao, Khmer, Myanmar and their neighbours.
"""
SPACED = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--{UNSPACED}]"
"""What words of scripts with spaces are made of, as a pattern of `regex.V1`, as is the other one."""
_WORD = rf"(?!\p{{M}}){SPACED}(?:{SPACED}|[\u00ad\u200c\u200d\u2060\ufeff])*"
_WORDS = regex.compile(rf"(?P<unspaced>{UNSPACED}+)|{_WORD}", regex.V1)
_PIECES = regex.compile(rf"(?P<unspaced>{UNSPACED}+)|(?:(?!{UNSPACED}).)+", regex.V1)
_CHARACTER = regex.compile(r"\X")
_CHUNK = re.compile(r"[\w\x80-\U0010ffff]+", re.ASCII)
_MOST_REMEMBERED = 32
"""Characters of a chunk that is remembered; a whole paragraph can be one."""

_APOSTROPHES = map(ord, "\u2018\u2019\u201a\u201b\u02bc\u02b9\u2032\u00b4\u0060\uff07")
_UNSEEN = (0x00AD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
_TRADEMARKS = (0x2120, 0x2122)  # NFKC makes letters of them.
_CHARACTERS = {**dict.fromkeys(_APOSTROPHES, "'"), **dict.fromkeys((*_UNSEEN, *_TRADEMARKS), "")}
_LETTERS = str.maketrans("أإآٱىیک", "ااااييك")
_POINTS = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]+"
    f"|[{''.join(map(chr, _LETTERS))}]"
)
"""Vowel points of Hebrew and Arabic and tatweel, which most people leave out, and letters that are one to them."""


def normalised(text: str) -> str:
    """NFKC, caseless, apostrophes made one, invisible characters and points out, any white space one space."""
    composed = unicodedata.normalize("NFKC", text.translate(_CHARACTERS))
    folded = _POINTS.sub(_without_points, composed).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _without_points(match: re.Match[str]) -> str:
    return match[0].translate(_LETTERS) if ord(match[0][0]) in _LETTERS else ""


def words(text: str, shortest: int = 1) -> list[str]:
    """The words in their order, those of scripts with spaces from so many characters on."""
    found = list[str]()
    for chunk in _CHUNK.findall(text.lower()):
        if not chunk.isascii():
            found += (_cut if len(chunk) <= _MOST_REMEMBERED else _cut.__wrapped__)(chunk, shortest)
        elif len(chunk) >= shortest:
            found.append(chunk)
    return found


def pieces(text: str) -> list[str]:
    """What white space parts, with its punctuation and in the same normal form; runs without spaces as in `words`."""
    found = list[str]()
    for piece in normalised(text).split():
        found += [piece] if piece.isascii() else _parts(_PIECES, piece)
    return found


@functools.lru_cache(1 << 14)
def _cut(chunk: str, shortest: int) -> list[str]:
    return _parts(_WORDS, chunk, shortest)


def _parts(pattern: "regex.Pattern[str]", text: str, shortest: int = 1) -> list[str]:
    found = list[str]()
    for match in pattern.finditer(text):
        part = match[0] if match[0].isascii() else normalised(match[0])
        if match["unspaced"]:
            characters = _CHARACTER.findall(part)
            found += map("".join, itertools.pairwise(characters)) if characters[1:] else characters
        elif len(part) >= shortest:
            found.append(part)
    return found
