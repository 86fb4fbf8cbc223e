"""A sampler of one row in plain Python, to compare the batched one with: fixed quota by confidence, temperature 0."""

import math


def log_probs(row):
    """List of fp64 log-probabilities of a list of logits."""
    top = max(row)
    total = top + math.log(sum(math.exp(v - top) for v in row))
    return [v - total for v in row]


class PlainRun:
    """What a rule may look at: `canvas`, `blanks` (indices), `logits` (of the forward), `masked` (before the commit)."""

    def __init__(self, model, prompt, new, quota, rule, block=None, span=None):
        """rule(run) -> bool, asked after each commit. prompt: list of ids, the mask id marks blanks."""
        import torch

        self.start = len(prompt)
        self.canvas = list(prompt) + [model.mask] * new
        self.blanks = [i for i, token in enumerate(self.canvas) if token == model.mask]
        self.mask, self.steps = model.mask, 0
        self.history = []
        while any(token == self.mask for token in self.canvas):
            logits = model(torch.tensor([self.canvas])).logits[0].double().tolist()
            for row in logits:
                row[model.mask] = -math.inf
            self.logits = logits
            self.masked = [i for i in self.blanks if self.canvas[i] == self.mask]
            self.proposal = {i: max(range(len(logits[i])), key=lambda v, i=i: logits[i][v]) for i in self.masked}
            confidence = {i: log_probs(logits[i])[self.proposal[i]] for i in self.masked}
            first = self.masked[0]
            end = len(self.canvas)
            if block is not None:
                end = self.start + ((first - self.start) // block + 1) * block
            open_ = sorted((i for i in self.masked if i < end), key=lambda i: (-confidence[i], i))
            for i in open_[:quota]:
                self.canvas[i] = self.proposal[i]
            self.steps += 1
            stop = rule(self)
            self.history.append((self.masked, self.proposal))
            if stop:
                for i in self.masked:
                    self.canvas[i] = self.proposal[i]

    @property
    def progress(self):
        return 1 - sum(self.canvas[i] == self.mask for i in self.blanks) / len(self.blanks)

    def gap(self, i):
        best, second = sorted(self.logits[i])[:-3:-1]
        return best - second
