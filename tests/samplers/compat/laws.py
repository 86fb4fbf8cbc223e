"""Exact laws of small samplers, and models whose output is a table over all canvases."""

import itertools

import torch
from scipy.stats import chisquare

FALSE_ALARM = 1e-5


def canvases(vocabulary, length):
    """Every canvas, the mask being the last token."""
    return list(itertools.product(range(vocabulary), repeat=length))


class Table:
    """Logits [canvas, L, V] by canvas and, with `levels`, by the noise level it is told; counts the rows it is called with."""

    def __init__(self, vocabulary=4, length=2, levels=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.vocabulary, self.length, self.mask = vocabulary, length, vocabulary - 1
        self.levels = None if levels is None else torch.as_tensor(levels)
        times = 1 if levels is None else len(levels)
        shape = (times, vocabulary**length, length, vocabulary)
        self.table = 3 * torch.rand(shape, generator=generator)
        self.rows = 0

    def number(self, tokens):
        return (tokens * self.vocabulary ** torch.arange(self.length - 1, -1, -1)).sum(-1)

    def time(self, sigma):
        """The place of the told level; it has to be one of them."""
        if self.levels is None:
            return torch.zeros(len(sigma), dtype=torch.int64)
        distance = (-torch.expm1(-sigma[:, None]) / 0.999 - self.levels).abs()
        assert (distance.amin(-1) < 1e-4).all(), sigma
        return distance.argmin(-1)

    def __call__(self, tokens, sigma):
        assert sigma.shape == tokens.shape[:1]
        self.rows += len(tokens)
        return self.table[self.time(sigma), self.number(tokens)].clone()

    def p(self, canvas, time=0):
        """[L][V] probabilities of clean tokens, as lists: SUBS."""
        logits = self.table[time if self.levels is not None else 0, self.number(torch.tensor(canvas))].double()
        logits[:, self.mask] = -torch.inf
        p = logits.softmax(-1)
        for i, token in enumerate(canvas):
            if token != self.mask:
                p[i] = 0.0
                p[i, token] = 1.0
        return p.tolist()


def walk(law, weights, remember=lambda memory, before, after, step: memory, steps=()):
    """The law of (canvas, memory) after the steps; weights(canvas, memory, step) are [L][V], negative ones being 0."""
    for step in steps:
        after = {}
        for (canvas, memory), mass in law.items():
            rows = [[max(w, 0.0) for w in row] for row in weights(canvas, memory, step)]
            options = [[(v, w / sum(row)) for v, w in enumerate(row) if w > 0] for row in rows]
            for choice in itertools.product(*options):
                to = tuple(v for v, _ in choice)
                probability = mass
                for _, w in choice:
                    probability *= w
                state = (to, remember(memory, canvas, to, step))
                after[state] = after.get(state, 0.0) + probability
        law = after
    return law


def over_canvases(law):
    total = {}
    for (canvas, _), mass in law.items():
        total[canvas] = total.get(canvas, 0.0) + mass
    return total


def fits(samples, law, vocabulary):
    """p-value of samples int64 [N, L] under a law over canvases; 0 where it has something impossible."""
    counts = {}
    for row in samples.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    if any(law.get(canvas, 0.0) < 1e-12 for canvas in counts):
        return 0.0
    kept = [canvas for canvas, mass in law.items() if mass * len(samples) >= 5]
    observed = [counts.get(canvas, 0) for canvas in kept]
    expected = [law[canvas] * len(samples) for canvas in kept]
    rest, rest_expected = len(samples) - sum(observed), len(samples) - sum(expected)
    if rest_expected > 1e-6:
        observed, expected = [*observed, rest], [*expected, rest_expected]
    scale = sum(observed) / sum(expected)
    return chisquare(observed, [e * scale for e in expected]).pvalue if len(observed) > 1 else 1.0
