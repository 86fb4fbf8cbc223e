"""`Diffusion._semi_ar_sampler` of BD3-LM (kuleshov-group/bd3lms, diffusion.py), as a function of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.compat.absorbing import Settings, fresh_seed
from dlm_samplers.composition import Composition
from dlm_samplers.models import ModelSpec, describe
from dlm_samplers.models.adapter import device_of
from dlm_samplers.policies import AncestralUnmask, FixedQuota, Policy
from dlm_samplers.schedules import TimeGrid
from dlm_samplers.stopping import EndOfText

SMALLEST_LEVEL = 1e-5
"""Before the last step, which fills all masks."""


def semi_ar_sampler(
    model: Callable[..., Any],
    n_samples: int = 1,
    num_steps: int | None = None,
    num_strides: int | None = None,
    seqlen: int | None = None,
    context_size: int = 1024,
    *,
    first_hitting: bool | None = None,
    nucleus_p: float | None = None,
    var_length: bool | None = None,
    bos_token_id: int | None = None,
    mask_index: int | None = None,
    spec: ModelSpec | None = None,
    seed: int | None = None,
) -> tuple[Tensor, int]:
    """Drop-in for `diffusion._semi_ar_sampler(n_samples, num_steps, num_strides, seqlen)`: (int64 [n, L], forwards)
    (BD3-LM, arXiv:2503.09573). Forwards are those of the row with most.

    model: the training module or a checkpoint's model, whose configuration then supplies what is not given; or any network
        with a `spec` that has `block_length`.
    num_steps: noise levels a block is walked through; without effect under `first_hitting`.
    first_hitting: one token a forward, at a random position of the block: the same law as num_steps without end
        (arXiv:2409.02908). Default: the configuration's, else True.
    var_length: a row ends at its first end of text; what follows is end of text.
    bos_token_id: the first token of every row; None: there is none, and the model draws it.

    Equal in distribution to the published code for networks that are not told the noise level, with `first_hitting` at any
    nucleus_p. Differences:

    - Without `first_hitting` the grid is 1, ..., 0 in num_steps equal steps. Upstream's levels are 1 / (num_steps - 1) apart
      and its steps 1 / num_steps long, which do not fit; at its default of 5,000 no one could tell.
    - Rows move through their blocks by themselves (upstream: `num_masked.item()` allows one row with first_hitting).
    - A step without a flip costs no forward. Upstream counts a forward for each step in which a token changed.
    - Samples of low entropy are returned (upstream draws anew, up to ten times, where the last 256 tokens have an entropy below
      4 nats, which is a matter for the caller).
    - seqlen above context_size raises InvalidArgumentError (upstream slides a window whose rotary positions begin at 0).
    - Keys and values of finished blocks are kept where a cache goes with the model.
    - Noise is keyed by seed, row, position and, without `first_hitting`, step.
    """
    settings = Settings(model)
    if spec is None:
        spec = describe(model, mask_id=mask_index).require_spec()
    elif mask_index is not None:
        raise InvalidArgumentError("mask_index belongs inside spec when spec is given")
    block = spec.block_length
    if block is None:
        raise InvalidArgumentError(
            "model: not block-causal (spec.block_length is None); use dlm_samplers.compat.mdlm.sample"
        )
    if seqlen is None and num_strides is not None:
        seqlen = num_strides * block
    seqlen = settings("seqlen", seqlen, "model.length", "model_length")
    if seqlen % block or num_strides not in (None, seqlen // block):
        raise InvalidArgumentError(
            f"seqlen must be num_strides blocks of {block} tokens, got seqlen={seqlen} and num_strides={num_strides}"
        )
    if seqlen > context_size:
        raise InvalidArgumentError(f"seqlen must be at most context_size = {context_size}, got {seqlen}")
    policy: Policy = FixedQuota("random", tokens_per_step=1)
    steps = None
    prompt = torch.full((n_samples, int(bos_token_id is not None)), bos_token_id or 0, device=device_of(model))
    new_tokens = seqlen - prompt.shape[1]
    if not settings("first_hitting", first_hitting, "sampling.first_hitting", default=True):
        policy = AncestralUnmask(TimeGrid(SMALLEST_LEVEL))
        steps = settings("num_steps", num_steps, "algo.T", default=5000) * max(-(-new_tokens // block), 1)
    ends = settings("var_length", var_length, "sampling.var_length", default=False)
    output = (
        Composition(policy, stopping=[EndOfText()] if ends else [])
        .sampler(model, spec)
        .generate(
            prompt,
            max_new_tokens=new_tokens,
            steps=steps,
            temperature=1.0,
            top_p=settings("nucleus_p", nucleus_p, "sampling.nucleus_p", default=1.0),
            seed=fresh_seed(seed),
        )
    )
    tokens = output.sequences
    if ends:
        generated = torch.arange(seqlen, device=tokens.device) >= prompt.shape[1]
        ended = ((tokens == spec.eos_id) & generated).cumsum(-1) > 0
        tokens = torch.where(ended, spec.eos_id or 0, tokens)
    return tokens, int(output.nfe.max()) if n_samples else 0
