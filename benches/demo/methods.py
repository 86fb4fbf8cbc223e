"""The samplers that the demo compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dlm_benches.tiny.model import TinyAR, TinyDLM
from dlm_benches.tiny.tasks import Item
from dlm_samplers import EndOfText, EntropyBound, Factor, FixedQuota, LLaDASampler, Policy, Threshold
from dlm_samplers.reference import llada_generate

NEW_TOKENS = 32

Kind = Literal["published", "one", "fixed", "threshold", "factor", "entropy", "policy", "ar"]


@dataclass(frozen=True)
class Answers:
    """What a method returned for a batch: answer ids up to (not including) the end of text, and what they cost."""

    answers: list[list[int]]
    tokens: list[int]
    """Answer tokens up to and including the end of text, per item."""
    nfe: list[int]


@dataclass(frozen=True)
class Method:
    """A named way to answer a batch of questions."""

    name: str
    kind: Kind
    guarantee: str
    run: Callable[[list[Item]], Answers]

    @property
    def adaptive(self) -> bool:
        return self.kind in ("threshold", "factor")


def all_methods(dlm: TinyDLM, ar: TinyAR) -> list[Method]:
    """The published sampler first, then ours from the strictest to the boldest, then the autoregressive baseline."""
    methods = [
        Method("published, 1 a forward", "published", "reference", lambda items: published(dlm, items)),
        ours("ours, 1 a forward", "one", dlm, FixedQuota()),
    ]
    for k in (4, 8):
        methods.append(ours(f"fixed {k} a forward", "fixed", dlm, FixedQuota(tokens_per_step=k)))
    for tau in (0.7, 0.9, 0.95, 0.99):
        methods.append(ours(f"threshold {tau:g}", "threshold", dlm, Threshold(tau)))
    for f in (0.5, 1.0, 2.0):
        methods.append(ours(f"factor {f:g}", "factor", dlm, Factor(f)))
    methods.append(ours("entropy bound 0.1", "entropy", dlm, EntropyBound(0.1)))
    methods.append(Method("autoregressive, KV cache", "ar", "other model", lambda items: autoregressive(ar, items)))
    return methods


def ours(name: str, kind: Kind, model: TinyDLM, policy: Policy | None = None, **parts: Any) -> Method:
    """Our sampler with a policy and, by default, the end-of-text stop. parts: other arguments of the sampler."""
    sampler = LLaDASampler(model, policy=policy, **{"stopping": [EndOfText()], **parts})

    def run(items: list[Item]) -> Answers:
        out = sampler.generate([item.prompt for item in items], max_new_tokens=NEW_TOKENS, block_length=NEW_TOKENS)
        return Answers([c.tolist() for c in out.completions], out.generated.tolist(), out.nfe.tolist())

    return Method(name, kind, str(sampler.guarantee), run)


def published(model: TinyDLM, items: list[Item]) -> Answers:
    """LLaDA's sampler as published: left padding, one token a forward, the whole generation length."""
    prompts, mask = pad_left([item.prompt for item in items], model.config.pad_token_id)
    out = llada_generate(
        model,
        prompts,
        None if bool(mask.all()) else mask,
        steps=NEW_TOKENS,
        gen_length=NEW_TOKENS,
        block_length=NEW_TOKENS,
        mask_id=model.config.mask_token_id,
    )[:, prompts.shape[1] :]
    answers = [_until(row.tolist(), model.config.eos_token_id) for row in out]
    tokens = [min(len(answer) + 1, NEW_TOKENS) for answer in answers]
    return Answers(answers, tokens, [NEW_TOKENS] * len(items))


def autoregressive(model: TinyAR, items: list[Item]) -> Answers:
    """Greedy decoding with a KV cache by the autoregressive model of the same size and data."""
    out = model.generate([item.prompt for item in items], NEW_TOKENS)
    answers = [_until(row.tolist(), model.config.eos_token_id) for row in out.tokens]
    return Answers(answers, [min(len(answer) + 1, NEW_TOKENS) for answer in answers], out.nfe.tolist())


def pad_left(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """int64 [B, P] prompts padded on the left and their int64 [B, P] attention mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def _until(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids
