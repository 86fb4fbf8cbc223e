"""SDAR's generate against its loop in plain Python, with this library's draws."""

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (pip install 'dlm-kernels[hf]')")

from dlm_benches.architectures import SDARStyleConfig, SDARStyleModel
from dlm_kernels import InvalidArgumentError
from dlm_kernels.rng import gumbel, make_row_ids
from dlm_samplers.compat.sdar import block_diffusion_generate

V, MASK = 41, 40


def build(seed, block):
    torch.manual_seed(seed)
    config = {
        "vocab_size": V,
        "hidden_size": 32,
        "intermediate_size": 64,
        "initializer_range": 0.35,
        "block_length": block,
    }
    return SDARStyleModel(SDARStyleConfig(**config, tie_word_embeddings=False)).eval()


@torch.no_grad()
def plain(model, prompt, gen, block, steps, temperature, top_k, top_p, strategy, threshold, stop, seed, by_step):
    """Upstream's loop without its cache. Returns the canvas and the forwards."""
    total = -(-(len(prompt) + gen) // block) * block
    x = prompt + [MASK] * (total - len(prompt))
    quotas = [block // steps + (step < block % steps) for step in range(steps)]
    column = torch.arange(total) // block
    ids = make_row_ids(torch.tensor(0), torch.arange(total))
    forwards = 0
    for begin in range(len(prompt) // block * block, total, block):
        end = begin + block
        for quota in quotas:
            masks = [i for i in range(begin, end) if x[i] == MASK]
            if not masks:
                break
            mask = (column[:end, None] >= column[:end])[None, None]
            logits = model(torch.tensor([x[:end]]), mask).logits[0].double()
            logits[:, MASK] = -torch.inf
            if temperature:
                logits = logits / temperature
                if top_k:
                    logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
                if top_p < 1:
                    p, order = logits.softmax(-1).sort(descending=True)
                    dropped = p.cumsum(-1) - p > top_p
                    logits.scatter_(1, order, logits.gather(1, order).masked_fill(dropped, -torch.inf))
            p = logits.softmax(-1)
            noise = 0.0
            if temperature:
                at = torch.tensor(forwards if by_step else 0)
                noise = gumbel(torch.tensor(seed), ids[:end], at, V).double()
            token = (logits + noise).argmax(-1)
            sure = p.gather(1, token[:, None])[:, 0].tolist()
            chosen = [i for i in masks if sure[i] > threshold]
            if strategy == "sequential":
                chosen = masks[:quota]
            elif strategy == "low_confidence_static" or len(chosen) < quota:
                chosen = sorted(masks, key=lambda i: (-sure[i], i))[:quota]
            for i in chosen:
                x[i] = int(token[i])
            forwards += 1
        if stop and set(stop) & set(x[len(prompt) :]):
            break
    return x, forwards


@pytest.mark.parametrize("strategy", ["low_confidence_dynamic", "low_confidence_static", "sequential"])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8, "denoising_steps": 3},
        {"temperature": 0.9, "top_k": 9, "top_p": 0.9, "block_length": 8, "denoising_steps": 5, "stop": (2, 7)},
    ],
    ids=str,
)
def test_the_tokens_are_those_of_the_published_loop(strategy, settings):
    cut = 0
    for seed in range(3):
        given = {"block_length": 4, "denoising_steps": 4, "top_k": 0, "top_p": 1.0, "stop": None, **settings}
        model = build(seed, given["block_length"])
        prompt = torch.randint(MASK, (1, 1 + 2 * seed), generator=torch.Generator().manual_seed(seed))
        stop = given.pop("stop")
        shared = {"temperature": given["temperature"], "top_k": given["top_k"], "top_p": given["top_p"]}
        expected, forwards = plain(
            *(model, prompt[0].tolist(), 21, given["block_length"], given["denoising_steps"]),
            **shared,
            strategy=strategy,
            threshold=0.4,
            stop=stop,
            seed=seed,
            by_step=strategy != "sequential",
        )
        calls = []
        hook = model.model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        got = block_diffusion_generate(
            *(model, {"input_ids": prompt}, MASK),
            gen_length=21,
            **given,
            remasking_strategy=strategy,
            confidence_threshold=0.4,
            stopping_criteria_idx=stop,
            seed=seed,
        )
        hook.remove()
        assert got[0].tolist() == expected
        assert len(calls) == forwards
        cut += MASK in expected
    assert bool(cut) == bool(stop)


def test_bad_input_is_named():
    model, prompt = build(0, 4), {"input_ids": torch.tensor([[1, 2]])}
    with pytest.raises(InvalidArgumentError, match=r"prompt\['input_ids'\] must be \[1, P\]"):
        block_diffusion_generate(model, {"input_ids": torch.ones(2, 3, dtype=torch.int64)}, MASK)
    with pytest.raises(InvalidArgumentError, match="remasking_strategy must be one of"):
        block_diffusion_generate(model, prompt, MASK, remasking_strategy="entropy_bounded")
    with pytest.raises(InvalidArgumentError, match="prompt holds mask tokens"):
        block_diffusion_generate(model, {"input_ids": torch.tensor([[1, MASK]])}, MASK)
    with pytest.raises(InvalidArgumentError, match="denoising_steps"):
        block_diffusion_generate(model, prompt, MASK, denoising_steps=0)
