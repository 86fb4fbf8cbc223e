"""The symbol vocabulary of the `reasoning` models: 49 one-character symbols, so that text and ids map one to one.

Uppercase letters are task tags, `=` ends a prompt, `_` is an empty Sudoku cell. The mask symbol is the last id.
"""

from __future__ import annotations

from collections.abc import Iterable

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
TAGS = "SRCAPHU"  # sort, reverse, copy, add, replace ("put"), shuffle, sudoku
SYMBOLS = LETTERS + DIGITS + TAGS + "+=_" + ".~?"  # ".": EOS, "~": PAD, "?": MASK

ID = {symbol: index for index, symbol in enumerate(SYMBOLS)}
LETTER_0 = ID["a"]
DIGIT_0 = ID["0"]
PLUS, EQUALS, BLANK = ID["+"], ID["="], ID["_"]
EOS, PAD, MASK = ID["."], ID["~"], ID["?"]
SIZE = len(SYMBOLS)
assert MASK == SIZE - 1


class VocabularyError(ValueError):
    """A character or an id that the vocabulary does not hold."""


def encode(text: str) -> list[int]:
    """Ids of a string, one per character. Raises `VocabularyError` for an unknown character."""
    try:
        return [ID[symbol] for symbol in text]
    except KeyError as error:
        raise VocabularyError(f"text: {error.args[0]!r} is not among the symbols {SYMBOLS!r}") from None


def decode(ids: Iterable[int], *, trim: bool = True) -> str:
    """The string of some ids; with `trim`, up to the first EOS and without padding. Raises `VocabularyError`.

    >>> decode(encode("Sdbca=abcd.."))
    'Sdbca=abcd'
    """
    symbols = []
    for index in map(int, ids):
        if not 0 <= index < SIZE:
            raise VocabularyError(f"ids: {index} is outside [0, {SIZE})")
        if trim and index == EOS:
            break
        if not (trim and index == PAD):
            symbols.append(SYMBOLS[index])
    return "".join(symbols)
