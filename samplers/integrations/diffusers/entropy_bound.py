"""`EntropyBoundScheduler` of diffusers in one pass over the vocabulary."""

from __future__ import annotations

import torch
from diffusers import EntropyBoundScheduler, SchedulerMixin  # noqa: F401 - loading a saved pipeline asks this module for it
from diffusers.schedulers.scheduling_entropy_bound import EntropyBoundSchedulerOutput
from torch import Tensor

from dlm_kernels import InvalidArgumentError, score_tokens, select_positions
from dlm_samplers.integrations.diffusers.checks import check_step
from dlm_samplers.integrations.diffusers.draws import Keys


class FusedEntropyBoundScheduler(EntropyBoundScheduler):
    """Drop-in for `EntropyBoundScheduler`: same config, arguments and outputs; `pred_logits`, which it returns, is the only
    tensor of the logits' size.

    Given the draws, the tokens are the original's at every step. Differences:

    - Tokens and noise are drawn by numbers keyed by row and position, from one seed a step that is taken from `generator` (or
      torch's own): the same distribution, other draws, and a row's do not depend on the rows after it. The generator may be on
      another device than the logits.
    - Entropies are computed in fp32 and summed in fp64 (original: both in the logits' dtype; in bf16 an entropy is
      off by up to 7 %). For fp32 logits they agree to the rounding of its softmax, 1e-4 at
      150,000 tokens; a sum that is closer than this to the bound may fall on the other side.
    - Equal entropies: the lowest position is accepted first (original: open, its sort is not stable).
    - A temperature that is not positive, from t_min and t_max or a `timestep` after the last, raises (original: RuntimeError
      from `torch.multinomial`, or the least likely tokens).
    - NaN logits: the first NaN is the token, its probability NaN, and it is not accepted (original: RuntimeError).
    - Logits are fp32, bf16 or fp16 (original: also fp64); `sampled_probs` carries no gradient.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        entropy_bound: float | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EntropyBoundSchedulerOutput | tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One denoising step; arguments and outputs as in `EntropyBoundScheduler.step`.

        Raises:
            InvalidArgumentError (a ValueError): a temperature that is not positive, shapes that do not go together, logits
                of another dtype.
        """
        check_step(model_output, sample)
        if entropy_bound is None:
            entropy_bound = self.config.entropy_bound
        left = (self.num_inference_steps - int(timestep)) / self.num_inference_steps
        temperature = self.config.t_min + (self.config.t_max - self.config.t_min) * left
        if not temperature > 0:
            raise InvalidArgumentError(
                f"the temperature must be > 0, got {temperature} at timestep {int(timestep)} of {self.num_inference_steps} "
                f"from t_max={self.config.t_max} to t_min={self.config.t_min}"
            )
        keys = Keys.draw(sample, generator)
        tempered = model_output / temperature
        scores = score_tokens(tempered, temperature=1.0, **keys._asdict())
        accepted = select_positions(
            -scores.entropy,
            torch.ones_like(sample, dtype=torch.bool),
            entropy=scores.entropy,
            entropy_bound=torch.full((), float(entropy_bound), device=sample.device),  # a negative one accepts nothing
            at_least=0,
        )
        after = torch.where(accepted, scores.token, keys.uniform_tokens(model_output.shape[-1]))
        if not return_dict:
            return after, accepted, scores.token, scores.confidence, tempered
        return EntropyBoundSchedulerOutput(
            prev_sample=after,
            accepted_index=accepted,
            sampled_tokens=scores.token,
            sampled_probs=scores.confidence,
            pred_logits=tempered,
        )
