"""DiffusionGemma's original `generate` with its draws replaced by the keyed ones, made from the specification of the keys.

A request's numbers are keyed by (seed, request << 32 | generated position, step): step 0 is the canvas of noise, step n the one
in which n steps are left. Tokens take the Gumbel stream, noise the state stream.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationMixin

from dlm_kernels.reference.philox import STATE_STREAM, gumbel_noise, keyed_integer
from dlm_kernels.rng import make_row_ids

PAD = 0


@contextmanager
def keyed_draws(seed, rows, canvas_length, max_denoising_steps):
    """`seed`: one for the batch, requests 0 to rows - 1."""
    canvas, step = -1, 0
    prepare = DiffusionGemmaGenerationMixin._prepare_denoiser_inputs

    def keys():
        at = canvas * canvas_length + torch.arange(canvas_length)
        ids = make_row_ids(torch.arange(rows)[:, None], at)
        return torch.full_like(ids, seed), ids, torch.full_like(ids, step)

    def next_canvas(self, **inputs):
        nonlocal canvas, step
        canvas, step = canvas + 1, 0
        return prepare(self, **inputs)

    def multinomial(p, num_samples):
        nonlocal step
        step = step - 1 if step else max_denoising_steps
        noise = gumbel_noise(*(key.flatten() for key in keys()), p.shape[1])
        return (p.log() + noise).argmax(-1, keepdim=True)

    def randint(*, low, high, size, device):
        assert (low, tuple(size)) == (0, (rows, canvas_length))
        return keyed_integer(*keys(), high, STATE_STREAM)

    with (
        mock.patch.multiple(torch, multinomial=multinomial, randint=randint),
        mock.patch.object(DiffusionGemmaGenerationMixin, "_prepare_denoiser_inputs", next_canvas),
    ):
        yield


def original(model, input_ids, *, seed, **call):
    """`model.generate` with the draws of `DiffusionGemmaSampler(model).generate(seed=seed)`."""
    steps = call.get("max_denoising_steps", 48)
    with keyed_draws(seed, len(input_ids), model.config.canvas_length, steps):
        return model.generate(input_ids, **call)


def prompts(seed, rows, width, padded=True):
    """Left-padded in rows of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    given = torch.arange(width) >= torch.randint(width if padded else 1, (rows, 1), generator=draw)
    ids = torch.randint(6, 60, (rows, width), generator=draw)
    return {"input_ids": torch.where(given, ids, PAD), "attention_mask": given.long()}
