"""A policy of your own: commit from the left as far as the model is sure.

A policy is a frozen dataclass with a guarantee, the sentence it rests on, and `select`: bool [B, L], the positions that commit.
"""

from dataclasses import dataclass

import numpy as np
import torch

from dlm_benches.tiny.load import load
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import EndOfText, Guarantee, LLaDASampler, Policy, Threshold


@dataclass(frozen=True)
class SureRun(Policy):
    """Commit the run of masks from the left whose confidence reaches tau, and the first of them in any case."""

    tau: float = 0.9

    guarantee = Guarantee.APPROXIMATE
    promise = "each token of a run is sure by itself, which bounds no joint error"

    def select(self, scores, state):
        waiting = state.active  # bool [B, L]: the masks of each row's block
        unsure = waiting & (scores.confidence < self.tau)
        run = waiting & (unsure.cumsum(-1) == 0)
        first = waiting & (waiting.cumsum(-1) == 1)
        return run | first  # at least one position of every live row, so that the loop ends


def main(questions: int = 40) -> None:
    model = load("reasoning")
    for name in ("sort", "shuffle"):
        items = TASKS[name].sample(np.random.default_rng(0), questions)
        for policy in (Threshold(0.9), SureRun(0.9)):
            sampler = LLaDASampler(model, policy=policy, stopping=[EndOfText()])
            out = sampler.generate([item.prompt for item in items], max_new_tokens=32)
            right = [TASKS[name].check(i.prompt, c.tolist()) for i, c in zip(items, out.completions, strict=True)]
            print(
                f"{name:<8} {policy!s:<12} {sum(right)} of {questions}, {out.nfe.to(torch.float).mean():.1f} forwards"
            )
    print(sampler.explain())


if __name__ == "__main__":
    main()
