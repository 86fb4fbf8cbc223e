"""Which policy for a task: accuracy with its 95 % interval against forwards, and which choices no other one beats.

    python examples/choose_policy.py [task] [questions]

`dlm-bench samplers` does this for every policy and task.
"""

import sys

import numpy as np

from dlm_benches.stats import wilson
from dlm_benches.tiny.load import load
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import EndOfText, EntropyBound, Factor, FixedQuota, LLaDASampler, Threshold

POLICIES = [
    FixedQuota(tokens_per_step=1),
    FixedQuota(tokens_per_step=4),
    FixedQuota(tokens_per_step=8),
    Threshold(0.7),
    Threshold(0.9),
    Threshold(0.99),
    Factor(0.5),
    Factor(1.0),
    EntropyBound(0.1),
]


def main(task: str = "shuffle", questions: int = 40) -> None:
    model = load("reasoning")
    items = TASKS[task].sample(np.random.default_rng(0), questions)
    results = []
    for policy in POLICIES:
        sampler = LLaDASampler(model, policy=policy, stopping=[EndOfText()])
        out = sampler.generate([item.prompt for item in items], max_new_tokens=32, block_length=32)
        right = sum(TASKS[task].check(i.prompt, c.tolist()) for i, c in zip(items, out.completions, strict=True))
        results.append((float(out.nfe.float().mean()), right, policy, sampler.guarantee))
    print(f"{task}, {questions} questions; * no other is as right with fewer forwards")
    best = -1
    for forwards, right, policy, guarantee in sorted(results, key=lambda r: (r[0], -r[1])):
        low, high = wilson(right, questions)
        mark, best = ("*" if right > best else " "), max(best, right)
        print(
            f"{mark} {forwards:5.1f} forwards  {right / questions:4.0%} ({low:.0%} - {high:.0%})  {guarantee!s:<12} {policy}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
