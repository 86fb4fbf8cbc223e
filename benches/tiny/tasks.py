"""The generated tasks: vectorised samplers with a deterministic train/test split, and exact scorers.

A prompt is `TAG content =` (at most 19 symbols), an answer at most 16 symbols. Except for Sudoku, a keyed hash of
the prompt alone decides its split (1 in 8 is test), so no test prompt is ever drawn for training, whatever the seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlm_benches.tiny import vocab

Split = Literal["train", "test"]
Ids = NDArray[np.int64]

TEST_ONE_IN = 8
SPLIT_KEY = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Item:
    """One question: ids of the prompt, of one right answer (without EOS), and what the scorer does not need."""

    task: str
    prompt: list[int]
    answer: list[int]
    meta: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """n questions as arrays: prompt [n, P] and answer [n, A], filled up with PAD, and their lengths [n]; int64."""

    prompt: Ids
    prompt_length: Ids
    answer: Ids
    answer_length: Ids

    def take(self, index: NDArray) -> Rows:
        return Rows(self.prompt[index], self.prompt_length[index], self.answer[index], self.answer_length[index])


def prompt_hash(prompt: Ids) -> NDArray[np.uint64]:
    """Keyed 64-bit hash of each prompt, ignoring PAD. [n, P] int64 -> [n] uint64 (multiply-xorshift per symbol)."""
    state = np.full(len(prompt), SPLIT_KEY, dtype=np.uint64)
    for column in prompt.T:
        mixed = (state ^ column.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        state = np.where(column == vocab.PAD, state, mixed)
    return state ^ (state >> np.uint64(32))


def is_test(prompt: Ids) -> NDArray[np.bool_]:
    """Which prompts belong to the test split. [n, P] int64 -> [n] bool."""
    return prompt_hash(prompt) % np.uint64(TEST_ONE_IN) == 0


class Task:
    """One kind of question. Subclasses give `draw` (any split) and `check`."""

    name: str
    tag: str

    def draw(self, rng: np.random.Generator, n: int, split: Split) -> Rows:
        """About n random rows; a subclass may ignore `split` and leave the choice to `rows`."""
        raise NotImplementedError

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether an answer (ids up to, not including, EOS) is right. Any other length, symbol or order is wrong."""
        raise NotImplementedError

    def in_split(self, rows: Rows, split: Split) -> NDArray[np.bool_]:
        return is_test(rows.prompt) == (split == "test")

    def rows(self, rng: np.random.Generator, n: int, split: Split) -> Rows:
        """Exactly n rows of one split."""
        parts: list[Rows] = []
        have = 0
        keep = 1 / TEST_ONE_IN if split == "test" else 1 - 1 / TEST_ONE_IN
        while have < n:
            rows = self.draw(rng, int((n - have) / keep * 1.3) + 8, split)
            rows = rows.take(np.flatnonzero(self.in_split(rows, split)))
            parts.append(rows)
            have += len(rows.prompt)
        return Rows(*(np.concatenate([getattr(p, f) for p in parts])[:n] for f in Rows.__dataclass_fields__))

    def sample(self, rng: np.random.Generator, n: int, split: Split = "test") -> list[Item]:
        """n questions of one split."""
        rows = self.rows(rng, n, split)
        items = []
        for prompt, p, answer, a in zip(rows.prompt, rows.prompt_length, rows.answer, rows.answer_length, strict=True):
            items.append(Item(self.name, prompt[:p].tolist(), answer[:a].tolist(), {"answer_length": int(a)}))
        return items

    def content(self, prompt: Sequence[int]) -> list[int]:
        """The symbols between the tag and `=`. Raises `ValueError` for another task's prompt."""
        if len(prompt) < 2 or prompt[0] != vocab.ID[self.tag] or prompt[-1] != vocab.EQUALS:
            raise ValueError(f"prompt: expected '{self.tag}...=', got {vocab.decode(prompt, trim=False)!r}")
        return list(map(int, prompt[1:-1]))


def _assemble(tag: str, content: Ids, length: Ids) -> tuple[Ids, Ids]:
    """`TAG content =` per row. content [n, C] with anything beyond its length [n] -> prompt [n, C + 2], lengths [n]."""
    n, width = content.shape
    prompt = np.full((n, width + 2), vocab.PAD, dtype=np.int64)
    prompt[:, 0] = vocab.ID[tag]
    prompt[:, 1:-1] = np.where(np.arange(width) < length[:, None], content, vocab.PAD)
    prompt[np.arange(n), length + 1] = vocab.EQUALS
    return prompt, length + 2


class _Letters(Task):
    """6 to 16 random letters, repeats allowed; at least 26^6 prompts of the shortest length."""

    shortest, longest = 6, 16

    def draw(self, rng: np.random.Generator, n: int, split: Split) -> Rows:
        length = rng.integers(self.shortest, self.longest + 1, n)
        content = vocab.LETTER_0 + rng.integers(0, 26, (n, self.longest))
        prompt, prompt_length = _assemble(self.tag, content, length)
        beyond = np.arange(self.longest) >= length[:, None]
        return Rows(prompt, prompt_length, np.where(beyond, vocab.PAD, self.solve(content, length)), length)

    def solve(self, content: Ids, length: Ids) -> Ids:
        """Answers [n, 16] to contents [n, 16] of the given lengths [n]; columns beyond a length are ignored."""
        raise NotImplementedError

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        content = np.array([self.content(prompt)], dtype=np.int64)
        return self.solve(content, np.array([content.shape[1]]))[0].tolist() == list(map(int, answer))


class Sort(_Letters):
    """`Sdbca=` -> `abcd`."""

    name, tag = "sort", "S"

    def solve(self, content: Ids, length: Ids) -> Ids:
        beyond = np.arange(content.shape[1]) >= length[:, None]
        return np.sort(np.where(beyond, vocab.SIZE, content), axis=1)


class Reverse(_Letters):
    """`Rdbca=` -> `acbd`."""

    name, tag = "reverse", "R"

    def solve(self, content: Ids, length: Ids) -> Ids:
        source = length[:, None] - 1 - np.arange(content.shape[1])
        return np.take_along_axis(content, np.maximum(source, 0), axis=1)


class Copy(_Letters):
    """`Cdbca=` -> `dbca`."""

    name, tag = "copy", "C"

    def solve(self, content: Ids, length: Ids) -> Ids:
        return content


class Addition(Task):
    """`A123+989=` -> `2111`: zero-padded operands, four digits of the sum, least significant first; 10^6 prompts."""

    name, tag = "addition", "A"

    def draw(self, rng: np.random.Generator, n: int, split: Split) -> Rows:
        left, right = rng.integers(0, 1000, (2, n))
        places = np.array([100, 10, 1])
        content = np.full((n, 7), vocab.PLUS, dtype=np.int64)
        content[:, :3] = vocab.DIGIT_0 + left[:, None] // places % 10
        content[:, 4:] = vocab.DIGIT_0 + right[:, None] // places % 10
        prompt, prompt_length = _assemble(self.tag, content, np.full(n, 7))
        answer = vocab.DIGIT_0 + (left + right)[:, None] // np.array([1, 10, 100, 1000]) % 10
        return Rows(prompt, prompt_length, answer, np.full(n, 4))

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        left, right = vocab.decode(self.content(prompt)).split("+")
        return vocab.decode(answer, trim=False) == f"{int(left) + int(right):04d}"[::-1]


class _WaitingLine(Task):
    """4 to 8 different one-letter names in a line (after ParallelBench, arXiv:2510.04767); over 350,000 lines of 4."""

    shortest, longest = 4, 8

    def line(self, rng: np.random.Generator, n: int) -> tuple[Ids, Ids, Ids]:
        """Lines [n, 8] of lengths [n], and one more name [n] that is in no place of its line."""
        names = vocab.LETTER_0 + np.argsort(rng.random((n, 26)), axis=1)[:, : self.longest + 1]
        return names[:, :-1], rng.integers(self.shortest, self.longest + 1, n), names[:, -1]


class Replace(_WaitingLine):
    """`P2xdbca=` -> `dxca`: put x in the second place."""

    name, tag = "replace", "P"

    def draw(self, rng: np.random.Generator, n: int, split: Split) -> Rows:
        line, length, newcomer = self.line(rng, n)
        place = rng.integers(0, length)
        content = np.concatenate([vocab.DIGIT_0 + 1 + place[:, None], newcomer[:, None], line], axis=1)
        prompt, prompt_length = _assemble(self.tag, content, length + 2)
        answer = np.where(np.arange(self.longest) < length[:, None], line, vocab.PAD)
        answer[np.arange(n), place] = newcomer
        return Rows(prompt, prompt_length, answer, length)

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        digit, newcomer, *line = self.content(prompt)
        line[digit - vocab.DIGIT_0 - 1] = newcomer
        return line == list(map(int, answer))


class Shuffle(_WaitingLine):
    """`Hdbca=` -> any order of the same names but the given one; training answers are uniform over those."""

    name, tag = "shuffle", "H"

    def draw(self, rng: np.random.Generator, n: int, split: Split) -> Rows:
        line, length, _ = self.line(rng, n)
        prompt, prompt_length = _assemble(self.tag, line, length)
        beyond = np.arange(self.longest) >= length[:, None]
        order = np.argsort(np.where(beyond, 2.0, rng.random(line.shape)), axis=1, kind="stable")
        rows = Rows(prompt, prompt_length, np.where(beyond, vocab.PAD, np.take_along_axis(line, order, axis=1)), length)
        return rows.take(np.flatnonzero(((order != np.arange(self.longest)) & ~beyond).any(axis=1)))

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        line, given = self.content(prompt), list(map(int, answer))
        return given != line and sorted(given) == sorted(line)


def sudoku_grids() -> Ids:
    """All 288 completed 4x4 grids, in lexical order, cells 0 to 3. -> [288, 16] int64."""
    rows = list(itertools.permutations(range(4)))
    grids = []
    for a, b in itertools.product(rows, rows):
        if len({*a[:2], *b[:2]}) < 4:  # the two upper boxes; the right one follows from the left
            continue
        for c, d in itertools.product(rows, rows):
            columns = zip(a, b, c, d, strict=True)
            if len({*c[:2], *d[:2]}) == 4 and all(len(set(column)) == 4 for column in columns):
                grids.append(a + b + c + d)
    return np.array(grids, dtype=np.int64)


_HOUSES = (
    [[4 * r + c for c in range(4)] for r in range(4)]
    + [[4 * r + c for r in range(4)] for c in range(4)]
    + [[8 * R + 2 * C + 4 * r + c for r in range(2) for c in range(2)] for R in range(2) for C in range(2)]
)


class Sudoku(Task):
    """`U` 16 cells `=` -> the full grid, digits 1 to 4, 6 to 11 clues; scored by the rules, not by one solution.

    Split by completed GRID: of the 24 relabellings of each of the 12 classes of grids, 3 (chosen by the keyed hash)
    are held out: 36 test grids, 252 training grids, and training never draws a clue or an answer from a test grid.
    Read this honestly: a test grid is new, but it is a relabelling of training grids (there are only two 4x4 grids
    up to all symmetries), and a puzzle with several solutions may also have a training grid among them.
    """

    name, tag = "sudoku", "U"
    fewest, most = 6, 11
    held_out_per_class = 3

    def __init__(self) -> None:
        grids = sudoku_grids()
        relabel = np.argsort(grids[:, :4], axis=1)  # the first row becomes 0, 1, 2, 3
        classes = np.take_along_axis(relabel, grids, axis=1) @ (4 ** np.arange(16))
        held_out = np.zeros(len(grids), dtype=bool)
        for value in np.unique(classes):
            members = np.flatnonzero(classes == value)
            held_out[members[np.argsort(prompt_hash(grids[members]))[: self.held_out_per_class]]] = True
        self.grids: dict[Split, Ids] = {"train": grids[~held_out], "test": grids[held_out]}

    def draw(self, rng: np.random.Generator, n: int, split: Split) -> Rows:
        grids = self.grids[split]
        answer = vocab.DIGIT_0 + 1 + grids[rng.integers(0, len(grids), n)]
        clues = rng.integers(self.fewest, self.most + 1, n)
        shown = np.argsort(np.argsort(rng.random((n, 16)), axis=1), axis=1) < clues[:, None]
        prompt, prompt_length = _assemble(self.tag, np.where(shown, answer, vocab.BLANK), np.full(n, 16))
        return Rows(prompt, prompt_length, answer, np.full(n, 16))

    def in_split(self, rows: Rows, split: Split) -> NDArray[np.bool_]:
        return np.ones(len(rows.prompt), dtype=bool)  # `draw` chose the grids already

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        cells, given = self.content(prompt), list(map(int, answer))
        if len(given) != 16 or any(c not in (vocab.BLANK, g) for c, g in zip(cells, given, strict=True)):
            return False
        digits = set(range(vocab.DIGIT_0 + 1, vocab.DIGIT_0 + 5))
        return all({given[i] for i in house} == digits for house in _HOUSES)


TASKS: dict[str, Task] = {
    task.name: task for task in (Sort(), Reverse(), Copy(), Addition(), Replace(), Shuffle(), Sudoku())
}
