"""One row at temperature 0 in plain Python, for tests that write a method down a second time."""

import math

import torch
from fakes import SpikeModel

VOCABULARY = 23


class PlainRow:
    """A canvas, its forward, and the block that the loop is in."""

    def __init__(self, model, prompt, new, block=None):
        self.model, self.mask, self.block = model, model.mask, block
        self.start, self.end = len(prompt), len(prompt) + new
        self.canvas = list(prompt) + [self.mask] * new
        self.forwards = 0

    def masked(self, begin=0, end=None):
        return [i for i in range(begin, self.end if end is None else end) if self.canvas[i] == self.mask]

    def next_block(self):
        """(begin, end) of the block that the first mask is in."""
        if self.block is None:
            return self.start, self.end
        begin = self.start + (self.masked()[0] - self.start) // self.block * self.block
        return begin, min(begin + self.block, self.end)

    def forward(self):
        """log_p[position][token], the mask token left out; sets `proposal` and its probability `confidence`."""
        self.forwards += 1
        logits = self.model(torch.tensor([self.canvas])).logits[0].double()
        logits[:, self.mask] = -math.inf
        log_p = logits.log_softmax(-1).tolist()
        self.proposal = [max(range(len(row)), key=row.__getitem__) for row in log_p]
        self.confidence = [math.exp(row[token]) for row, token in zip(log_p, self.proposal, strict=True)]
        return log_p

    def commit(self, positions):
        for i in positions:
            self.canvas[i] = self.proposal[i]


def best(positions, score, count):
    """The `count` of highest score, ties to the left."""
    return sorted(positions, key=lambda i: (-score[i], i))[:count]


def cases(number, seed=0, longest=20, **model):
    """(model, prompts, budgets): `number` small batches of ragged rows."""
    for case in range(number):
        generator = torch.Generator().manual_seed(1000 * seed + case)
        lengths = torch.randint(1, 6, (4,), generator=generator).tolist()
        prompts = [torch.randint(VOCABULARY - 1, (n,), generator=generator) for n in lengths]
        budgets = torch.randint(1, longest, (4,), generator=generator).tolist()
        yield SpikeModel(case, vocab=VOCABULARY, **model), prompts, budgets


def agree(out, prompts, budgets, rows):
    """Asserts that a batch's output is that of the plain rows, forwards included."""
    for row, plain in enumerate(rows):
        width = len(prompts[row]) + budgets[row]
        assert out.sequences[row, :width].tolist() == plain.canvas, row
        assert int(out.nfe[row]) == plain.forwards, row
