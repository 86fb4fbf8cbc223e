"""The one loop: forward, score, select, commit, stop. Every method is a plug-in of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, commit_
from dlm_samplers.canvas import Prompts, check_vocabulary, new_state, read_prompts, to_caller_layout
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import Adapter, ModelSpec
from dlm_samplers.models.adapter import LogitsProcessor
from dlm_samplers.models.spec import DREAM, LLADA
from dlm_samplers.output import GenerationInterrupted, SamplerOutput
from dlm_samplers.policies import FixedQuota, Policy
from dlm_samplers.randomness import request_keys
from dlm_samplers.schedules import TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import StoppingRule
from dlm_samplers.streaming import Streamer, StreamWriter, progress_bar

Callback = Callable[["Sampler", int, SamplerState], None]

STEPS_BETWEEN_CHECKS = {"cpu": 1}
"""Steps between two looks at which rows are finished. Looking costs nothing on a CPU and a device sync elsewhere."""
DEFAULT_STEPS_BETWEEN_CHECKS = 4


class Sampler:
    """Generates text with a masked diffusion language model. Use a subclass, which knows a family's conventions.

    model: any callable `model(input_ids [B, L], attention_mask=...) -> logits [B, L, V] or an object with .logits`.
    policy: which positions commit in a step; default: the family's published sampler.
    stopping: rules that finish a row early.
    spec: how to call the model; default: from mask_id, eos_id and `model.config`.
    backend: kernel backend, see `dlm_kernels.use_backend`; None chooses by device.
    """

    confidence: Literal["model", "sampling"] = "model"
    filter_order: Literal["top_k_first", "top_p_first"] = "top_k_first"
    default_block_length: int | None = 32
    contract: dict[str, Any] = LLADA

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        policy: Policy | None = None,
        stopping: Iterable[StoppingRule] = (),
        spec: ModelSpec | None = None,
        mask_id: int | None = None,
        eos_id: int | None = None,
        backend: str | None = None,
    ) -> None:
        if spec is None:
            spec = ModelSpec.of(model, mask_id=mask_id, eos_id=eos_id, **self.contract)
        elif mask_id is not None or eos_id is not None:
            raise InvalidArgumentError("mask_id and eos_id belong inside spec when spec is given")
        self.spec = spec
        self.adapter = Adapter(model, spec)
        self.policy = self.default_policy() if policy is None else policy
        if not isinstance(self.policy, Policy):
            raise InvalidArgumentError(f"policy must be a Policy instance, got {policy!r}")
        self.stopping = tuple(stopping)
        for rule in self.stopping:
            rule.check(spec)
        self.backend = backend

    def default_policy(self) -> Policy:
        """The family's published sampler."""
        return FixedQuota()

    @property
    def guarantee(self) -> Guarantee:
        """The weakest promise among the parts, relative to the family's published sampler with this policy's budget."""
        return Guarantee.weakest([self.policy.guarantee, *(rule.guarantee for rule in self.stopping)])

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | Sequence[Any],
        *,
        attention_mask: Tensor | None = None,
        editable: Any = None,
        max_new_tokens: int | Sequence[int] | Tensor = 128,
        block_length: int | Literal["default"] | None = "default",
        steps: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        cfg_scale: float = 0.0,
        seed: int | Sequence[int] | Tensor = 0,
        request_ids: Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        logits_processor: LogitsProcessor | None = None,
        callback_on_step_end: Callback | None = None,
        streamer: Streamer | None = None,
        progress: bool = False,
        return_history: bool = False,
    ) -> SamplerOutput:
        """Fills the blanks of the prompts and continues them.

        input_ids: int64 [B, P], or a list of 1-D sequences of any lengths. Rows may be padded on the left or on the right.
        attention_mask: [B, P], 1 on real tokens, 0 on padding.
        editable: bool [B, P] (or a list of 1-D sequences): prompt positions to fill. Default: those that hold the mask
            token. With max_new_tokens=0 this is infilling.
        max_new_tokens: length of the generated region, one number or one per row.
        block_length: semi-autoregressive blocks of this many tokens; None: the whole canvas at once.
        steps: model evaluations for the whole generated region, spread evenly over its blocks; only for policies on a
            fixed schedule. Default: one token a step.
        temperature, top_k, top_p: sampling distribution of a token; temperature 0 takes the most likely one.
        cfg_scale: classifier-free guidance; 0 is off.
        seed, request_ids, generator: one seed gives request r the key (seed, r); a sequence of seeds gives every row its
            own; request_ids reproduces single rows of a batch. The tokens of a request depend on its key and its logits
            alone, not on the batch. A generator yields the seed.
        logits_processor: called as f(tokens [B, L], logits [B, L, V]) -> logits, rows aligned with positions.
        callback_on_step_end: called as f(sampler, step, state) after each step; may change state.tokens in place.
        streamer: object with put(tokens), end() and optionally put_draft(value=canvas); for a single row.
        progress: a rich progress bar over committed tokens.
        return_history: keep the canvas after every step.

        Raises InvalidArgumentError before any work for arguments that cannot be met, and during it when the model's output
        has a wrong shape or NaN (naming the row); GenerationInterrupted, which carries the output so far, on Ctrl-C.
        """
        device = self._device(input_ids)
        prompts = read_prompts(input_ids, attention_mask, editable, self.spec, device)
        rows = prompts.tokens.shape[0]
        budget = _per_row("max_new_tokens", max_new_tokens, rows, device)
        block = self.default_block_length if block_length == "default" else block_length
        if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
            raise InvalidArgumentError(f"block_length must be an int >= 1 or None, got {block!r}")
        seeds, requests = request_keys(seed, request_ids, generator, rows, device)
        state = new_state(
            prompts,
            self.spec,
            max_new_tokens=budget,
            block_length=block,
            steps_per_block=self._steps_per_block(steps, budget, prompts.editable, block),
            seed=seeds,
            request_ids=requests,
        )
        if temperature < 0 or temperature != temperature:
            raise InvalidArgumentError(f"temperature must be >= 0, got {temperature}")
        if not 0 < top_p <= 1:
            raise InvalidArgumentError(f"top_p must be in (0, 1], got {top_p}")
        if top_k < 0:
            raise InvalidArgumentError(f"top_k must be >= 0 (0 is off), got {top_k}")
        padded = not bool(state.valid.all())
        if padded and self.spec.attention_mask == "none":
            raise InvalidArgumentError(
                "input_ids: the rows have different lengths and the model cannot ignore padding "
                "(spec.attention_mask is 'none'); generate rows of one length at a time"
            )
        run = _Run(state, return_history)
        writer = StreamWriter(streamer, state) if streamer is not None else None
        scoring = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "confidence": self.confidence,
            "filter_order": self.filter_order,
            "backend": self.backend,
        }
        check_every = STEPS_BETWEEN_CHECKS.get(device.type, DEFAULT_STEPS_BETWEEN_CHECKS)
        bar = progress_bar(int(state.editable.sum())) if progress else nullcontext()
        checked_vocabulary = self.spec.vocab_size is not None
        step = 0
        try:
            with bar as advance:
                state.enter_blocks()
                while run.compact():
                    for _ in range(check_every):
                        valid = state.valid if padded else None
                        if cfg_scale:
                            logits = self.adapter.guided(state.tokens, state.editable, valid, cfg_scale)
                        else:
                            logits = self.adapter.forward(state.tokens, valid)
                        if not checked_vocabulary:
                            check_vocabulary(state.tokens, ~state.editable & state.valid, logits.shape[-1])
                            checked_vocabulary = True
                        aligned = logits_processor is not None
                        if logits_processor is not None:
                            logits = logits_processor(state.tokens, self.adapter.align(logits))
                        scores = self.score(logits, state, aligned=aligned, scoring=scoring)
                        run.note_nan(scores.confidence)
                        chosen = self.policy.select(scores, state)
                        commit_(state.tokens, scores.token, chosen, backend=self.backend)
                        run.count(2 if cfg_scale else 1)
                        state.step = state.step + state.live
                        state.block_step = state.block_step + state.live
                        if callback_on_step_end is not None:
                            callback_on_step_end(self, step, state)
                        for rule in self.stopping:
                            state.live &= ~rule.stop(state, self.spec)
                        if writer is not None:
                            writer.step(state)
                        run.record()
                        if advance is not None:
                            advance(int(chosen.sum()))
                        state.enter_blocks()
                        step += 1
        except KeyboardInterrupt:
            raise GenerationInterrupted(run.output(self.spec, prompts, finished=False)) from None
        if writer is not None:
            writer.end()
        return run.output(self.spec, prompts, finished=True)

    def score(self, logits: Tensor, state: SamplerState, *, aligned: bool, scoring: dict[str, Any]) -> TokenScores:
        """Statistics [B, L] of the active positions."""
        never = [token for token in self.spec.never if token < logits.shape[-1]]
        return self.adapter.score(
            logits,
            state.active,
            state.row_ids,
            aligned=aligned,
            seed=state.seed[:, None],
            step=state.step[:, None],
            suppress_ids=never or None,
            **scoring,
        )

    def _steps_per_block(self, steps: int | None, budget: Tensor, blanks: Tensor, block: int | None) -> int | None:
        if not self.policy.scheduled:
            if steps is not None:
                raise InvalidArgumentError(
                    f"steps is for policies on a fixed schedule; {type(self.policy).__name__} decides by itself"
                )
            return None
        longest = int(budget.max()) if budget.numel() else 0
        if block is None:
            longest += int(blanks.sum(-1).max()) if blanks.numel() else 0
            return max(longest, 1) if steps is None else _positive("steps", steps)
        if steps is None:
            return block
        blocks = max(-(-longest // block), 1)
        if _positive("steps", steps) % blocks:
            raise InvalidArgumentError(f"steps must be a multiple of the number of blocks, {blocks}; got {steps}")
        return steps // blocks

    def _device(self, input_ids: Any) -> torch.device:
        if isinstance(input_ids, Tensor):
            return input_ids.device
        parameters = getattr(self.adapter.model, "parameters", None)
        first = next(iter(parameters()), None) if callable(parameters) else None
        return torch.device("cpu") if first is None else first.device


class LLaDASampler(Sampler):
    """Sampler for LLaDA-type models (arXiv:2502.09992): unshifted logits, confidence at temperature 1, blocks.

    Without a policy it is the published low-confidence remasking sampler, except that the mask token is never generated.
    """


class DreamSampler(Sampler):
    """Sampler for Dream-type models (arXiv:2508.15487): logits shifted by one, confidence of the tempered and filtered
    distribution, no blocks unless asked for.

    Without a policy it is Dream's `maskgit_plus` on its time grid, except that the mask token is never generated and that
    every row follows its own number of masks.
    """

    confidence = "sampling"
    filter_order = "top_p_first"
    default_block_length = None
    contract = DREAM

    def default_policy(self) -> Policy:
        return FixedQuota(schedule=TimeGrid())


class _Run:
    """Book-keeping of one `generate` call over the caller's whole batch, while rows leave the state as they finish."""

    def __init__(self, state: SamplerState, return_history: bool) -> None:
        self.state = state
        self.tokens = state.tokens.clone()
        self.editable, self.length = state.editable, state.length
        rows = state.tokens.shape[0]
        self.nfe = torch.zeros(rows, dtype=torch.int64, device=state.tokens.device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=state.tokens.device)
        self.nan = torch.zeros(rows, dtype=torch.bool, device=state.tokens.device)
        self.history = [self.tokens.clone()] if return_history else None

    def note_nan(self, confidence: Tensor) -> None:
        self.nan[self.state.index] |= (confidence.isnan() & self.state.active).any(-1)

    def count(self, evaluations: int) -> None:
        self.nfe[self.state.index] += evaluations * self.state.live

    def record(self) -> None:
        if self.history is not None:
            self.tokens[self.state.index] = self.state.tokens
            self.history.append(self.tokens.clone())

    def compact(self) -> bool:
        """Takes finished rows out of the state; False when none is left. The loop's one look at device values."""
        state = self.state
        if bool(self.nan.any()):
            raise InvalidArgumentError(f"model: NaN logits in row {int(self.nan.int().argmax())} of the batch")
        if bool(state.live.all()):
            return state.live.numel() > 0
        self._save()
        state.keep(state.live.nonzero()[:, 0])
        return state.live.numel() > 0

    def _save(self) -> None:
        self.tokens[self.state.index] = self.state.tokens
        self.done[self.state.index] = ~self.state.live

    def output(self, spec: ModelSpec, prompts: Prompts, *, finished: bool) -> SamplerOutput:
        if self.state.live.numel():
            self._save()
        done = torch.ones_like(self.done) if finished else self.done
        tokens, eos = self.tokens, spec.eos_id
        column = torch.arange(tokens.shape[1], device=tokens.device)
        generated_region = (column >= prompts.length[:, None]) & (column < self.length[:, None])
        if eos is None:
            end = self.length.clone()
        else:
            # A row that stopped early keeps masks after its end of text; they become end-of-text tokens.
            ended = generated_region & (tokens == eos)
            end = torch.where(ended.any(-1), ended.int().argmax(-1), self.length)
            rest = (tokens == spec.mask_id) & (column > end[:, None]) & self.editable
            tokens = tokens.masked_fill(rest, eos)
        kept = self.editable & (column <= end[:, None]) & (tokens != spec.mask_id)
        return SamplerOutput(
            sequences=to_caller_layout(tokens, self.length, prompts),
            nfe=self.nfe,
            generated=kept.sum(-1),
            finished=done,
            completions=[
                row[int(start) : int(stop)] for row, start, stop in zip(tokens, prompts.length, end, strict=True)
            ],
            history=[to_caller_layout(canvas, self.length, prompts) for canvas in self.history or []],
        )


def _per_row(name: str, value: int | Sequence[int] | Tensor, rows: int, device: torch.device) -> Tensor:
    numbers = torch.as_tensor(value, device=device)
    if numbers.dtype != torch.int64 or numbers.ndim > 1 or (numbers.ndim == 1 and numbers.numel() != rows):
        raise InvalidArgumentError(f"{name} must be an int or {rows} ints, one per row; got {value!r}")
    if bool((numbers < 0).any()):
        raise InvalidArgumentError(f"{name} must be >= 0, got {value!r}")
    return numbers.expand(rows)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgumentError(f"{name} must be an int >= 1, got {value!r}")
    return value
