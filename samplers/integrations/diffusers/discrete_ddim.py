"""`DiscreteDDIMScheduler` of diffusers in one pass over the vocabulary, with its corrector."""

from __future__ import annotations

import torch
from diffusers import DiscreteDDIMScheduler, SchedulerMixin  # noqa: F401 - loading a saved pipeline asks this module for it
from diffusers.schedulers.scheduling_discrete_ddim import DiscreteDDIMSchedulerOutput
from torch import Tensor

from dlm_kernels import InvalidArgumentError, keyed_uniform, score_tokens
from dlm_kernels.reference.philox import ROUTE_STREAM, UNIFORM_STREAM
from dlm_kernels.reference.uniform_step import routes
from dlm_samplers.integrations.diffusers.checks import check_step
from dlm_samplers.integrations.diffusers.draws import Keys
from dlm_samplers.integrations.diffusers.leave_one_out import LeaveOneOut

SELECTIONS = ("lowest_log_margin", "lowest_maxprob", "lowest_current_prob", "random")


class FusedDiscreteDDIMScheduler(DiscreteDDIMScheduler):
    """Drop-in for `DiscreteDDIMScheduler`: same config, arguments and outputs, no tensor of the logits' size.

    Given the draws, the tokens are the original's at every step; at temperature 0 the predicted tokens are whatever the draws.
    `step` is `dlm_kernels.uniform_step_` with the posterior denoiser, draw for draw. Differences:

    - Tokens, routes, noise and the corrector's positions are drawn by numbers keyed by row and position, from one seed a call
      that is taken from `generator` (or torch's own): the same distribution, other draws, and a row's do not depend on the
      rows after it. The generator may be on another device than the logits.
    - A `timestep` outside the schedule raises (original: RuntimeError from `torch.multinomial`, or ZeroDivisionError). So does
      `step_correct` after the last step, where nothing is left to correct (original: "math domain error").
    - `step_correct` works on fp32 statistics of a few rows at a time, then in fp64 (original: all of it in fp64, which takes
      twenty times the memory of bf16 logits); probabilities agree to 1e-5.
    - `sampled_probs` are within 1e-6 of the exact ones (original: its fp32 softmax on a CPU is off by 1e-4 at 150,000 tokens).
    - Equal logits: the lowest token, as in the original; equal scores of positions: open in both.
    - NaN logits: the first NaN is the token and its probability NaN (original: so at temperature 0, else RuntimeError).
    - Logits are fp32, bf16 or fp16 (original: also fp64); `sampled_probs` carries no gradient.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DiscreteDDIMSchedulerOutput | tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw the next block from q(x_s | x_t, x_0); arguments and outputs as in `DiscreteDDIMScheduler.step`.

        Raises:
            InvalidArgumentError (a ValueError): temperature < 0, a timestep outside the schedule, shapes that do not go
                together, logits of another dtype.
        """
        check_step(model_output, sample)
        step = self._checked_step(timestep, self.num_inference_steps)
        keys = Keys.draw(sample, generator)
        scores = score_tokens(model_output, temperature=temperature, **keys._asdict())
        vocabulary = model_output.shape[-1]
        alpha_t, alpha_s = (
            torch.full(sample.shape[:1], self._alpha(at), dtype=torch.float64, device=sample.device)
            for at in (step, step + 1)
        )
        u = keyed_uniform(*keys, 0, stream=ROUTE_STREAM)
        noise, clean = routes(u, alpha_t, alpha_s, vocabulary, (scores.token == sample).double())
        after = torch.where(noise, keys.uniform_tokens(vocabulary), torch.where(clean, scores.token, sample))
        return _output(after, scores.token, scores.confidence, model_output, return_dict)

    def step_correct(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DiscreteDDIMSchedulerOutput | tuple[Tensor, Tensor, Tensor, Tensor]:
        """One Gibbs sweep at the time that predictor step `timestep` reached; arguments and outputs as in
        `DiscreteDDIMScheduler.step_correct`.

        Of x_s = alpha x0_loo + (1 - alpha) / K, the noise, the token that stands there and the rest are drawn apart.

        Raises:
            InvalidArgumentError (a ValueError): no predictor step is left after this one, shapes that do not go together,
                logits of another dtype.
        """
        check_step(model_output, sample)
        step = self._checked_step(timestep, self.num_inference_steps - 1)
        alpha, vocabulary = self._alpha(step + 1), model_output.shape[-1]
        keys = Keys.draw(sample, generator)
        positions = self._positions(model_output, sample, alpha, keys)
        rows = torch.arange(len(sample), device=sample.device)[:, None].expand_as(positions)

        loo = LeaveOneOut.of(model_output, sample, rows, positions, alpha, keys)
        route = keyed_uniform(*keys, 0, stream=ROUTE_STREAM)[rows, positions]
        # The rare routes first, where the uniform numbers are finest.
        takes_noise = route < 1 - alpha
        takes_other = route < 1 - alpha + alpha * (loo.others - loo.total).exp()
        there = sample[rows, positions]
        resampled = torch.where(
            takes_noise, keys.uniform_tokens(vocabulary)[rows, positions], torch.where(takes_other, loo.token, there)
        )
        stays = resampled == there
        drawn = model_output[rows, positions, resampled].double()
        probability = loo.conditional(torch.where(stays, loo.current, drawn)).exp()

        after = sample.clone()
        after[rows, positions] = resampled
        return _output(after, resampled, probability, model_output, return_dict)

    def _positions(self, logits: Tensor, sample: Tensor, alpha: float, keys: Keys) -> Tensor:
        """int64 [B, k]: positions to resample, the least sure first (Gumbel-top-k)."""
        selection = self.config.corrector_selection
        if selection not in SELECTIONS:
            raise InvalidArgumentError(f"corrector_selection must be one of {SELECTIONS}, got {selection!r}")
        k = min(max(1, int(self.config.corrector_k)), sample.shape[1])
        u = keyed_uniform(*keys, 0, stream=UNIFORM_STREAM)
        if selection == "random":
            return u.topk(k).indices

        rows, columns = torch.meshgrid(*(torch.arange(n, device=sample.device) for n in sample.shape), indexing="ij")
        loo = LeaveOneOut.of(logits, sample, rows, columns, alpha)
        there, best_other = loo.conditional(loo.current), loo.conditional(loo.candidate)
        sure = {
            "lowest_log_margin": there - best_other,
            "lowest_maxprob": torch.maximum(there, best_other),
            "lowest_current_prob": there,
        }[selection]
        return (-sure / float(self.config.corrector_selection_tau) - torch.log(-torch.log(u))).topk(k).indices

    @staticmethod
    def _checked_step(timestep: int | Tensor, steps: int) -> int:
        step = int(timestep)
        if not 0 <= step < steps:
            raise InvalidArgumentError(f"timestep must be in [0, {steps}), got {step}")
        return step


def _output(
    after: Tensor, tokens: Tensor, probabilities: Tensor, logits: Tensor, return_dict: bool
) -> DiscreteDDIMSchedulerOutput | tuple[Tensor, Tensor, Tensor, Tensor]:
    if not return_dict:
        return after, tokens, probabilities, logits
    return DiscreteDDIMSchedulerOutput(
        prev_sample=after, sampled_tokens=tokens, sampled_probs=probabilities, pred_logits=logits
    )
