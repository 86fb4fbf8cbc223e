"""Small numbers for a laptop: the same samplers on int8 and bf16 weights, and what that changes.

    python examples/quantized.py [questions per task]

"alone": answers that are the same tokens when the question is asked by itself. torch's int8 rounds activations too, by one
scale for the batch, so its rows depend on each other; torchao's weights-only int8 does not.
"""

import copy
import io
import sys
import time
import warnings
from collections.abc import Callable
from itertools import zip_longest

import numpy as np
import torch
from torch import nn

from dlm_benches.stats import wilson
from dlm_benches.tiny.load import load
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import EndOfText, LLaDASampler, Threshold


def torch_int8(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch 2.10, still there in 2.13
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def torchao_int8(model: nn.Module) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model, Int8WeightOnlyConfig())
    return model


VERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fp32": copy.deepcopy,
    "bf16": lambda model: copy.deepcopy(model).bfloat16(),
    "int8, torchao, weights": torchao_int8,
    "int8, torch, dynamic": torch_int8,
}


def size(model: nn.Module) -> int:
    """Bytes of a checkpoint."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def main(each: int = 8) -> None:
    model = load("reasoning")
    rng = np.random.default_rng(0)
    items = [item for task in TASKS.values() for item in task.sample(rng, each)]
    prompts = [item.prompt for item in items]
    reference, base = [], 0.0
    print(f"{len(items)} questions, Threshold(0.9); time is a ratio to fp32")
    for name, convert in VERSIONS.items():
        small = convert(model)
        sampler = LLaDASampler(small, policy=Threshold(0.9), stopping=[EndOfText()])

        def ask(batch: list[list[int]], sampler: LLaDASampler = sampler) -> list[list[int]]:
            return [c.tolist() for c in sampler.generate(batch, max_new_tokens=32).completions]

        ask(prompts[:8])
        start = time.perf_counter()
        answers = ask(prompts)
        seconds = time.perf_counter() - start
        reference, base = reference or answers, base or seconds
        right = sum(TASKS[i.task].check(i.prompt, a) for i, a in zip(items, answers, strict=True))
        low, high = wilson(right, len(items))
        pairs = [(a, b) for a, b in zip(answers, reference, strict=True) if a != b]
        tokens = sum(x != y for a, b in pairs for x, y in zip_longest(a, b))
        alone = sum(ask([p])[0] == a for p, a in zip(prompts[::7], answers[::7], strict=True))
        print(
            f"{name:<23} {size(small) / 1e6:.2f} MB  right {right / len(items):.1%} ({low:.1%} - {high:.1%})  "
            f"differ from fp32 {len(pairs)} ({tokens} tokens)  alone {alone} of {len(prompts[::7])}  time {seconds / base:.2f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
