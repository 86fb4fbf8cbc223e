"""The denoising step of DiffusionGemma in one read of the logits, in the place of the original's within its own `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    DiffusionGemmaGenerationMixin,
    LinearTemperatureScheduleLogitsProcessor,
)

from dlm_kernels import InvalidArgumentError, TokenScores, commit_, score_tokens, select_positions
from dlm_kernels.reference.philox import STATE_STREAM, keyed_integer
from dlm_kernels.rng import make_row_ids

HOOKS = (
    "_prepare_sampler",
    "_prepare_logits_processor",
    "_prepare_ar_stopping_criteria",
    "_prepare_diffusion_stopping_criteria",
    "_prepare_static_cache",
    "_prepare_denoiser_inputs",
    "_compile_functions",
    "_denoising_step",
    "_finalize_canvas",
)
"""Methods that the original's `generate` calls and that are replaced here."""


class Draws:
    """A request's random numbers, keyed by (seed, request, generated position, denoising step) and nothing else."""

    def __init__(
        self, seed: Tensor, request: Tensor, canvas_length: int, vocabulary: int, entropy_bound: float
    ) -> None:
        """seed, request: int64 [B]."""
        self.seed, self.request = seed[:, None], request[:, None]
        self.canvas_length, self.vocabulary, self.entropy_bound = canvas_length, vocabulary, entropy_bound
        self.canvas = -1

    def initialize_canvas(self, batch_size: int, device: torch.device) -> Tensor:
        """The next canvas of noise, int64 [B, L]; the original calls this once a canvas, at step 0."""
        self.canvas += 1
        first = self.canvas * self.canvas_length
        positions = torch.arange(first, first + self.canvas_length, device=device)
        self.row_ids = make_row_ids(self.request, positions)
        return self.noise(0)

    def noise(self, step: int) -> Tensor:
        """int64 [B, L], every token as likely."""
        seed = self.seed.expand_as(self.row_ids)
        return keyed_integer(seed, self.row_ids, torch.full_like(seed, step), self.vocabulary, STATE_STREAM)


class StableAndConfident:
    """`StableAndConfidentStoppingCriteria` on entropies that are known; counts steps instead of keeping old canvases."""

    def __init__(self, stability_threshold: int, confidence_threshold: float) -> None:
        self.stability_threshold, self.confidence_threshold = stability_threshold, confidence_threshold
        self.reset()

    def reset(self) -> None:
        self.last: Tensor | None = None  # the likeliest tokens, int64 [B, L]
        self.unchanged: Tensor | None = None  # for how many steps, int64 [B]

    def __call__(self, best: Tensor, entropy: Tensor) -> Tensor:
        """bool [B]: rows whose `best` [B, L] did not change for long enough and whose mean entropy is low."""
        if self.last is None or self.unchanged is None:
            self.unchanged = torch.zeros(len(best), dtype=torch.int64, device=best.device)
        else:
            same = (self.last == best).all(-1)
            self.unchanged = torch.where(same, self.unchanged + 1, 0)
        self.last = best
        return (self.unchanged >= self.stability_threshold) & (entropy.mean(-1) < self.confidence_threshold)


class FusedGeneration(DiffusionGemmaGenerationMixin):
    """The model as its own `generate` sees it, with this library's step; what is set here is not set on the model.

    One is made for a call. `kept` outlives it: the static cache and the compiled forwards.
    """

    def __init__(self, model: Any, kept: dict[str, Any], seed: Tensor, request: Tensor, backend: str | None) -> None:
        self._model, self._kept, self._keys, self._backend = model, kept, (seed, request), backend
        self._in_place = True
        self._ended: Tensor | None = None  # bool [B]: rows with an end-of-text token in an earlier canvas
        self._frozen: list[int] = []  # rows that do not change any more in this canvas

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _prepare_sampler(self, generation_config: DiffusionGemmaGenerationConfig) -> Any:
        config = self._model.config
        bound = generation_config.sampler_config.entropy_bound
        return Draws(*self._keys, config.canvas_length, config.text_config.vocab_size, bound)

    def _prepare_logits_processor(self, generation_config: Any, logits_processor: Any = None) -> LogitsProcessorList:
        given = LogitsProcessorList(logits_processor or ())  # the original appends to the caller's
        self._in_place &= not given
        return super()._prepare_logits_processor(generation_config, given)

    def _prepare_ar_stopping_criteria(
        self, generation_config: Any, stopping_criteria: Any = None
    ) -> StoppingCriteriaList:
        return super()._prepare_ar_stopping_criteria(generation_config, StoppingCriteriaList(stopping_criteria or ()))

    def _prepare_diffusion_stopping_criteria(self, generation_config: DiffusionGemmaGenerationConfig) -> Any:
        stable, confident = generation_config.stability_threshold, generation_config.confidence_threshold
        return None if stable is None or confident is None else StableAndConfident(stable, confident)

    def _prepare_static_cache(self, *args: Any, **kwargs: Any) -> Any:
        self._cache = self._kept.get("cache")
        self._kept["cache"] = super()._prepare_static_cache(*args, **kwargs)
        return self._cache

    def _compile_functions(self, sampler: Any, diffusion_stopping_criteria: Any) -> tuple[Any, ...]:
        """Encoder and decoder; the step is kernels already."""
        if "decoder" not in self._kept:
            how: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True}
            self._kept["encoder"] = torch.compile(self._model.model.encoder, **how)
            self._kept["decoder"] = torch.compile(self._model.forward, **how)
        self._in_place = False  # their outputs may be memory of a CUDA graph, which the next step reads
        return self._kept["encoder"], self._kept["decoder"], sampler, diffusion_stopping_criteria

    def _prepare_denoiser_inputs(self, **inputs: Any) -> tuple[Any, ...]:
        canvas, self_conditioning, masks, finished = super()._prepare_denoiser_inputs(**inputs)
        self._frozen = []
        if self._ended is not None:  # their canvas becomes padding whatever is on it
            finished = finished | self._ended
            self._frozen = finished.nonzero()[:, 0].tolist()
        return canvas, self_conditioning, masks, finished

    def _finalize_canvas(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        tokens, finished = super()._finalize_canvas(**inputs)
        if inputs["generation_config"].pad_token_id is not None:
            self._ended = finished
        return tokens, finished

    def _denoising_step(
        self,
        decoder_forward: Callable[..., Any],
        current_canvas: Tensor,
        argmax_canvas: Tensor,
        input_ids: Tensor,
        decoder_position_ids: Tensor,
        self_conditioning_logits: Tensor | None,
        mask_mapping: Any,
        past_key_values: Any,
        finished_denoising: Tensor,
        cur_step: int,
        sampler: Draws,
        logits_processor: LogitsProcessorList,
        diffusion_stopping_criteria: StableAndConfident | None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(canvas, likeliest tokens, self-conditioning logits, finished), as the original."""
        step = int(cur_step)  # counts down to 1, and no step of a canvas comes twice
        torch.compiler.cudagraph_mark_step_begin()
        logits = decoder_forward(
            decoder_input_ids=current_canvas,
            self_conditioning_logits=self_conditioning_logits,
            decoder_attention_mask=mask_mapping,
            past_key_values=past_key_values,
            decoder_position_ids=decoder_position_ids,
            **model_kwargs,
        ).logits
        logits = self._process(logits_processor, input_ids, logits, step)
        best, scores = read_once(logits, finished_denoising, sampler, step, self._backend)

        bound = torch.full((), sampler.entropy_bound, device=logits.device)
        everywhere = torch.ones_like(current_canvas, dtype=torch.bool)
        entropy = scores.entropy
        accepted = select_positions(
            -entropy, everywhere, entropy=entropy, entropy_bound=bound, at_least=0, backend=self._backend
        )
        canvas = sampler.noise(step)
        commit_(canvas, scores.token, accepted, backend=self._backend)

        frozen = finished_denoising[:, None]
        canvas = torch.where(frozen, current_canvas, canvas)
        best = torch.where(frozen, argmax_canvas, best)
        conditioning = logits.to(self._model.model.decoder.embed_tokens.weight.dtype)
        if self_conditioning_logits is not None:
            for row in self._frozen:
                conditioning[row] = self_conditioning_logits[row]

        finished = finished_denoising
        if diffusion_stopping_criteria is not None:
            finished = finished | diffusion_stopping_criteria(best, entropy)
        # Read back where the original's loop does so in any case, to see whether to go on.
        stopped, broken = torch.stack((finished, entropy.isnan().any(-1))).tolist()
        if any(broken):
            raise InvalidArgumentError(
                f"the model returned NaN logits for row {broken.index(True)}, canvas {sampler.canvas}, step {step}"
            )
        self._frozen = [row for row, done in enumerate(stopped) if done]
        return canvas, best, conditioning, finished

    def _process(self, processors: LogitsProcessorList, input_ids: Tensor, logits: Tensor, step: int) -> Tensor:
        """Logits over temperature, after the caller's processors; in the model's own output where it is ours to write."""
        now = torch.full((), step, dtype=torch.int32, device=logits.device)
        schedule: Any = processors[0] if len(processors) == 1 else None
        if not self._in_place or type(schedule) is not LinearTemperatureScheduleLogitsProcessor:
            return processors(input_ids, logits, cur_step=now)
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * (now / schedule.max_denoising_steps)
        return logits.div_(t)


def read_once(
    logits: Tensor, finished: Tensor, draws: Draws, step: int, backend: str | None
) -> tuple[Tensor, TokenScores]:
    """Likeliest tokens int64 [B, L], and a draw with its statistics, of logits [B, L, V]; 0 in rows that are finished.

    Every row of logits is given twice, as a view: the second time it comes from the cache, and only its maximum is new.
    """
    pairs = logits[:, :, None].expand(-1, -1, 2, -1)
    live = (~finished)[:, None, None].expand(pairs.shape[:3])
    temperature = torch.arange(1, -1, -1, dtype=torch.float32, device=logits.device)  # a draw, then the best
    keys: dict[str, Any] = {"seed": draws.seed[..., None], "row_ids": draws.row_ids[..., None], "step": step}
    both = score_tokens(pairs, temperature=temperature, eligible=live, backend=backend, **keys)
    return both.token[..., 1], TokenScores(*(field[..., 0] for field in both))
