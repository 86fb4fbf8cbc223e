"""The function swaps for Fast-dLLM against its loop in plain Python, one row at a time, with keys and values kept by hand."""

import pytest
import torch
from by_hand import MASK, V, attend_by_hand, llada, prompts

from dlm_kernels import InvalidArgumentError
from dlm_samplers.compat import fast_dllm

FUNCTIONS = {
    "none": fast_dllm.generate,
    "prefix": fast_dllm.generate_with_prefix_cache,
    "dual": fast_dllm.generate_with_dual_cache,
}
RULES = [{"threshold": 0.2}, {"factor": 0.9}, {"steps": 4}, {"steps": 16}]


def choose(confidence, step, rule, masks_at_entry):
    """Upstream's choice from the confidences {column: c} of the block's masks."""
    order = sorted(confidence, key=lambda i: (-confidence[i], i))
    if "factor" in rule:
        n = 1
        while n < len(order):
            if confidence[order[n]] < 1 - rule["factor"] / (n + 2):
                break
            n += 1
        if n == len(order) - 1:  # its loop leaves the index at the last one, whether it broke off there or not
            n += 1
        return order[:n]
    if "threshold" in rule:
        return [i for n, i in enumerate(order) if n == 0 or confidence[i] >= rule["threshold"]]
    per_block = rule["steps"] // 2
    return order[: masks_at_entry // per_block + (step < masks_at_entry % per_block)]


@torch.no_grad()
def published(model, prompt, new, block, kind, rule):
    """The canvas and the forwards."""
    length = len(prompt) + new
    tokens = torch.cat([prompt, torch.full((new,), MASK)])
    forwards = 0
    for start in range(len(prompt), length, block):
        shape = (1, model.config.num_key_value_heads, length, model.config.head_dim)
        kept = [[torch.zeros(shape), torch.zeros(shape)] for _ in model.model.layers]
        columns, step = torch.arange(length), 0
        while (tokens[start : start + block] == MASK).any():
            logits = torch.full((length, V), -torch.inf)
            logits[columns] = attend_by_hand(model, tokens, columns, kept, torch.arange(length))
            logits[:, MASK] = -torch.inf
            p, proposal = logits[start : start + block].double().softmax(-1).max(-1)
            masks = [i for i in range(block) if tokens[start + i] == MASK]
            chosen = choose({i: float(p[i]) for i in masks}, step, rule, block)
            for i in chosen:
                tokens[start + i] = proposal[i]
            forwards, step = forwards + bool(chosen), step + 1
            columns = {
                "none": torch.arange(length),
                "prefix": torch.arange(start, length),
                "dual": torch.arange(start, start + block),
            }[kind]
    return tokens, forwards


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_tokens_and_forwards_are_the_published_ones(kind, rule):
    for seed in range(3):
        model = llada(seed)
        rows = prompts(rows=3, seed=seed)
        width = max(map(len, rows))
        left = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.int64), row]) for row in rows])
        mask = torch.arange(width) >= width - torch.tensor([[len(row)] for row in rows])
        call = {"gen_length": 16, "block_length": 8, "mask_id": MASK, "steps": 16, **rule}
        together, most = FUNCTIONS[kind](model, left, attention_mask=mask.long(), **call)
        counts = []
        for row, prompt in enumerate(rows):
            expected, forwards = published(model, prompt, 16, 8, kind, rule)
            counts.append(forwards)
            alone, nfe = FUNCTIONS[kind](model, prompt[None], **call)
            assert torch.equal(alone[0], expected)
            assert nfe == forwards
            assert torch.equal(together[row, width - len(prompt) :], expected)
        assert most == max(counts)
        assert torch.equal(together[:, :width], left)


def test_steps_are_called_back_and_the_factor_goes_before_the_threshold():
    model, prompt, seen = llada(), prompts(rows=1)[0][None], []
    call = {"gen_length": 16, "block_length": 8, "mask_id": MASK, "steps": 16, "factor": 0.9}
    tokens, forwards = fast_dllm.generate(model, prompt, step_callback=seen.append, **call)
    assert seen == list(range(forwards))
    assert torch.equal(fast_dllm.generate(model, prompt, threshold=0.2, **call)[0], tokens)


def test_bad_input_is_named():
    model, prompt = llada(), torch.tensor([[1, 2]])
    with pytest.raises(NotImplementedError, match="entropy"):
        fast_dllm.generate(model, prompt, remasking="entropy")
    with pytest.raises(InvalidArgumentError, match="block_length must divide gen_length"):
        fast_dllm.generate(model, prompt, gen_length=10, block_length=4)
    with pytest.raises(InvalidArgumentError, match="remasking must be 'low_confidence'"):
        fast_dllm.generate(model, prompt, remasking="random", threshold=0.9)
    with pytest.raises(InvalidArgumentError, match="prompt holds mask tokens"):
        fast_dllm.generate(model, torch.tensor([[MASK]]), mask_id=MASK)
    with pytest.raises(InvalidArgumentError, match="scores hidden states"):
        fast_dllm.generate_with_dual_cache(lambda ids: None, prompt, mask_id=MASK)
