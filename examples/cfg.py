"""Classifier-free guidance: logits move away from those of the same canvas with its prompt masked.

`cfg_scale=s` takes unconditional + (s + 1) (conditional - unconditional); both are one batch, so a step counts two forwards.
Drawn at temperature 3, some letters are wrong; a little guidance mends that, and too much breaks the answers.
"""

import numpy as np

from dlm_benches.tiny.load import load
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import FixedQuota, LLaDASampler


def main(questions: int = 100) -> None:
    items = TASKS["sort"].sample(np.random.default_rng(1), questions)
    prompts = [item.prompt for item in items]
    sampler = LLaDASampler(load("reasoning"), policy=FixedQuota(tokens_per_step=4))
    for scale in (0.0, 1.0, 4.0):
        out = sampler.generate(prompts, max_new_tokens=20, block_length=20, temperature=3.0, cfg_scale=scale)
        right = [TASKS["sort"].check(i.prompt, c.tolist()) for i, c in zip(items, out.completions, strict=True)]
        print(f"cfg_scale {scale:g}: {sum(right)} of {questions} sorted, {int(out.nfe[0])} forwards")


if __name__ == "__main__":
    main()
