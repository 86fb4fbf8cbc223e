"""English for the `text` model: the documentation that ships with Python, and a small byte-pair tokenizer.

The corpus is the prose of `pydoc_data.topics` and of the docstrings of the top-level standard library, one paragraph
a line, in ASCII. It differs a little between Python versions; the bundled weights and merges were made on the version
named in the recipe. Held out: whole documents (topics, modules), chosen by a hash of their name; a paragraph that
occurs in one of them is not trained on.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_benches.tiny.data_tasks import Batch

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
VOCAB_SIZE = 512
WINDOW = 256
TEST_ONE_IN = 10
PROSE_SHARE = 0.85
"""A paragraph is prose if it has 40 symbols and at least this share of letters and spaces (code and grammar do not)."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_WORDS = re.compile(r"\n+| ?[A-Za-z]+| ?[0-9]| ?[^A-Za-z0-9\s]+| ")
_PUNCTUATION = str.maketrans("\u2013\u2014\u2018\u2019\u201c\u201d\u2022", "--''\"\"*")  # dashes, quotes, bullet


def normalise(text: str) -> str:
    """The ASCII text that the tokenizer knows: accents dropped, other characters removed, tabs to spaces."""
    text = unicodedata.normalize("NFKD", text.translate(_PUNCTUATION)).replace("\t", " ")
    return "".join(symbol for symbol in text if symbol in ALPHABET)


def paragraphs(text: str) -> list[str]:
    """A topic's paragraphs of prose, each unwrapped to one line; headings, code and grammar are left out."""
    lines = [re.sub(r"\s+", " ", block).strip() for block in re.split(r"\n\s*\n", normalise(text))]
    plain = [sum(symbol.isalpha() or symbol == " " for symbol in line) for line in lines]
    return [
        line
        for line, n in zip(lines, plain, strict=True)
        if len(line) >= 40 and n >= PROSE_SHARE * len(line) and not re.search(r"[-=*^~]{3,}|::=", line)
    ]


def documents() -> dict[str, list[str]]:
    """Paragraphs of each document, by name: the language reference's topics and the library's modules."""
    from pydoc_data.topics import topics

    found = {f"topic {name}": paragraphs(text) for name, text in topics.items()}
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in string literals
            tree = ast.parse(path.read_bytes())
        nodes = (node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
        found[f"module {path.stem}"] = [p for node in nodes for p in paragraphs(ast.get_docstring(node) or "")]
    return found


def corpus() -> dict[Literal["train", "test"], list[str]]:
    """Documents of each split, paragraphs separated by newlines; every paragraph once (documents quote each other)."""
    every = documents()
    held_out = {name for name in every if zlib.crc32(name.encode()) % TEST_ONE_IN == 0}
    seen: set[str] = set()
    split: dict[Literal["train", "test"], list[str]] = {"test": [], "train": []}
    for name in sorted(every, key=lambda name: (name not in held_out, name)):
        fresh = [p for p in dict.fromkeys(every[name]) if p not in seen]
        seen.update(fresh)
        if fresh:
            split["test" if name in held_out else "train"].append("\n".join(fresh))
    return split


@dataclass(frozen=True)
class TextTokenizer:
    """Byte-pair encoding inside words (Sennrich et al., arXiv:1508.07909) over 96 ASCII symbols.

    Ids: the alphabet, the merges in order, then EOS, PAD, MASK. Raises `ValueError` for a merge of unknown pieces.
    """

    merges: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        known = set(ALPHABET)
        for left, right in self.merges:
            if left not in known or right not in known:
                raise ValueError(f"merges: {left!r} + {right!r} joins pieces that are not known yet")
            known.add(left + right)

    @cached_property
    def pieces(self) -> list[str]:
        return [*ALPHABET, *(left + right for left, right in self.merges)]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.pieces)}

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @property
    def eos(self) -> int:
        return len(self.pieces)

    @property
    def pad(self) -> int:
        return len(self.pieces) + 1

    @property
    def mask(self) -> int:
        return len(self.pieces) + 2

    def encode(self, text: str) -> list[int]:
        """Ids of a text, after `normalise`."""
        cache: dict[str, list[int]] = {}
        ids: list[int] = []
        for word in _WORDS.findall(normalise(text)):
            if word not in cache:
                cache[word] = [self._ids[piece] for piece in self._merge(word)]
            ids.extend(cache[word])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS; PAD left out, MASK shown as an underscore. Raises `ValueError` for other ids."""
        text = ""
        for index in map(int, ids):
            if index == self.eos:
                break
            if index == self.mask:
                text += "_"
            elif 0 <= index < len(self.pieces):
                text += self.pieces[index]
            elif index != self.pad:
                raise ValueError(f"ids: {index} is outside [0, {self.mask}]")
        return text

    def _merge(self, word: str) -> list[str]:
        pieces = list(word)
        while len(pieces) > 1:
            pairs = pairwise(pieces)
            rank, place = min((self._ranks.get(pair, len(self.merges)), place) for place, pair in enumerate(pairs))
            if rank == len(self.merges):
                break
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        return pieces

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"merges": [list(pair) for pair in self.merges]}) + "\n")

    @classmethod
    def read(cls, path: Path) -> TextTokenizer:
        return cls(tuple((left, right) for left, right in json.loads(path.read_text())["merges"]))

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int = VOCAB_SIZE) -> TextTokenizer:
        """The most frequent adjacent pair becomes a piece, again and again; ties go to the alphabetically first."""
        words = {tuple(word): n for word, n in Counter(w for text in texts for w in _WORDS.findall(text)).items()}
        merges: list[tuple[str, str]] = []
        while len(ALPHABET) + len(merges) + 3 < vocab_size:
            counts: Counter[tuple[str, str]] = Counter()
            for word, n in words.items():
                for pair in pairwise(word):
                    counts[pair] += n
            best = min(counts, key=lambda pair: (-counts[pair], pair))
            merges.append(best)
            words = {_join(word, best): n for word, n in words.items()}
        return cls(tuple(merges))


def _join(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair[0] not in word:
        return word
    joined: list[str] = []
    index = 0
    while index < len(word):
        if word[index : index + 2] == pair:
            joined.append(pair[0] + pair[1])
            index += 2
        else:
            joined.append(word[index])
            index += 1
    return tuple(joined)


def token_stream(tokenizer: TextTokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    """All texts one after another, an EOS after each. -> [N] int64."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer.encode(text), tokenizer.eos]
    return np.array(ids, dtype=np.int64)


def masked_text_batch(rng: np.random.Generator, size: int, stream: NDArray[np.int64], mask_id: int) -> Batch:
    """Random windows [size, 256]; mask ratio uniform (0.02, 1) per row; half of the rows keep a prompt of up to 128."""
    start = rng.integers(0, len(stream) - WINDOW + 1, size)
    targets = stream[start[:, None] + np.arange(WINDOW)]
    prompt = np.where(rng.random(size) < 0.5, rng.integers(0, WINDOW // 2 + 1, size), 0)
    masked = rng.random(targets.shape) < rng.uniform(0.02, 1.0, (size, 1))
    masked &= np.arange(WINDOW) >= prompt[:, None]
    masked[np.arange(size), rng.integers(WINDOW // 2, WINDOW, size)] = True  # never an empty loss
    return Batch(
        torch.from_numpy(np.where(masked, mask_id, targets)),
        torch.from_numpy(targets),
        torch.from_numpy(masked.astype(np.float32)),
        None,
    )


def held_out_prompts(tokenizer: TextTokenizer, n: int, length: int) -> list[list[int]]:
    """n prompts of `length` tokens, each the start of a held-out document (or of a later stretch of one)."""
    streams = [tokenizer.encode(text) for text in corpus()["test"]]
    starts = [ids[at : at + length] for at in range(0, max(map(len, streams)), WINDOW) for ids in streams]
    return [start for start in starts if len(start) == length][:n]
