"""The schedulers of diffusers with their draws replaced by the keyed ones, made from the specification of the keys.

So an original and its fused form have the same tokens at any temperature if everything but the draw is the same. Both take one
seed a call from the generator; in the original it goes to `torch.multinomial`, `torch.randint` and `torch.rand` for that call.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler

from dlm_kernels.reference.philox import ROUTE_STREAM, STATE_STREAM, UNIFORM_STREAM, gumbel_noise, keyed_integer
from dlm_kernels.rng import keyed_uniform, make_row_ids

ROUTES = 3  # clean, stay, noise


def next_keys(sample, generator):
    """(seed, row ids, step), int64 [B, L]."""
    seed = torch.randint(2**63 - 1, (), generator=generator)
    ids = make_row_ids(torch.arange(sample.shape[0])[:, None], torch.arange(sample.shape[1]))
    return seed.expand_as(ids), ids, torch.zeros_like(ids)


@contextmanager
def keyed_draws(sample, generator, chosen=None):
    """`chosen`: what the draw of the corrector gives, which is one of three parts; it must be possible."""
    keys = next_keys(sample, generator)

    def multinomial(p, num_samples, generator=None):
        assert num_samples == 1
        if chosen is not None:
            assert (p.gather(1, chosen.reshape(-1, 1)) > 0).all()
            return chosen.reshape(-1, 1)
        if p.shape[1] == ROUTES:
            u, (clean, _, noise) = keyed_uniform(*keys, stream=ROUTE_STREAM).flatten().double(), p.double().unbind(1)
            route = torch.where(u < noise, 2, torch.where(u < noise + clean, 0, 1))
            return route[:, None]
        noise = gumbel_noise(*(key.flatten() for key in keys), p.shape[1])
        return (p.log() + noise).argmax(-1, keepdim=True)

    def randint(*, low, high, size, device, generator):
        assert (low, tuple(size)) == (0, tuple(sample.shape))
        return keyed_integer(*keys, high, STATE_STREAM)

    def rand(*size, device, generator):
        assert torch.Size(size[0] if len(size) == 1 else size) == sample.shape
        return keyed_uniform(*keys, stream=UNIFORM_STREAM)

    with mock.patch.multiple(torch, multinomial=multinomial, randint=randint, rand=rand):
        yield


class KeyedBlockRefinement(BlockRefinementScheduler):
    def step(self, model_output, timestep, sample, *, mask_token_id=None, temperature=0.0, generator=None, **kwargs):
        call = (model_output, timestep, sample)
        kwargs |= {"mask_token_id": mask_token_id, "temperature": temperature, "generator": generator}
        greedy = temperature == 0 or kwargs.get("sampling_method", "auto") == "greedy"
        if greedy and mask_token_id is not None:
            return super().step(*call, **kwargs)  # draws nothing, and takes nothing from the generator
        with keyed_draws(sample, generator):
            return super().step(*call, **kwargs)


class KeyedEntropyBound(EntropyBoundScheduler):
    def step(self, model_output, timestep, sample, *, generator=None, **kwargs):
        with keyed_draws(sample, generator):
            return super().step(model_output, timestep, sample, generator=generator, **kwargs)


class KeyedDiscreteDDIM(DiscreteDDIMScheduler):
    def step(self, model_output, timestep, sample, *, temperature=0.0, generator=None, **kwargs):
        with keyed_draws(sample, generator):
            kwargs |= {"temperature": temperature, "generator": generator}
            return super().step(model_output, timestep, sample, **kwargs)

    def correct_with(self, chosen):
        """What the next calls of `step_correct` draw, in turn."""
        self.chosen = iter(chosen)

    def step_correct(self, model_output, timestep, sample, *, generator=None, **kwargs):
        with keyed_draws(sample, generator, chosen=next(self.chosen)):
            return super().step_correct(model_output, timestep, sample, generator=generator, **kwargs)
