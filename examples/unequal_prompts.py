"""Questions of unequal lengths with a budget each, four rows in the batch: a row that ends makes room for the next.

Every answer is the one the question gets alone.
"""

import numpy as np
import torch

from dlm_benches.tiny import vocab
from dlm_benches.tiny.load import load
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import EndOfText, LLaDASampler, Threshold

ROWS = 4


class Counted:
    """A model that counts its calls."""

    def __init__(self, model) -> None:
        self.model, self.config, self.calls = model, model.config, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.model(*args, **kwargs)


def main() -> None:
    rng = np.random.default_rng(0)
    items = [item for name in ("addition", "shuffle", "sort", "sudoku") for item in TASKS[name].sample(rng, 6)]
    rng.shuffle(items)
    prompts = [item.prompt for item in items]
    budgets = [len(item.answer) + 1 for item in items]  # the answer and the end of text

    model = Counted(load("reasoning"))
    sampler = LLaDASampler(model, policy=Threshold(0.9), stopping=[EndOfText()])
    out = sampler.generate(prompts, max_new_tokens=budgets, batch_size=ROWS)
    refilled, model.calls = model.calls, 0
    for start in range(0, len(prompts), ROWS):
        at = slice(start, start + ROWS)
        sampler.generate(prompts[at], max_new_tokens=budgets[at])
    waiting = model.calls
    alone = [sampler.generate([p], max_new_tokens=n).completions[0] for p, n in zip(prompts, budgets, strict=True)]

    for item, answer, forwards in list(zip(items, out.completions, out.nfe, strict=True))[:6]:
        print(f"{vocab.decode(item.prompt):<19}{vocab.decode(answer):<17} {int(forwards)} forwards")
    print(f"{refilled} calls of the model when rows are refilled, {waiting} when {ROWS} rows wait for the last of them")
    same = sum(torch.equal(a, b) for a, b in zip(alone, out.completions, strict=True))
    print(f"{same} of {len(items)} answers are those the question gets alone")


if __name__ == "__main__":
    main()
