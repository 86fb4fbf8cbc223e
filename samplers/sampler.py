"""The one loop: forward, score, select, commit, stop. Every method is a plug-in of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores
from dlm_samplers.caches import Cache
from dlm_samplers.caches.attention import window_attention
from dlm_samplers.canvas import new_state, read_prompts
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.lengths import LengthRule
from dlm_samplers.loop import Loop
from dlm_samplers.models import Adapter, ModelSpec
from dlm_samplers.models.adapter import LogitsProcessor, device_of
from dlm_samplers.models.describe import recognise
from dlm_samplers.models.padding import require_honoured_padding
from dlm_samplers.models.spec import DREAM, LLADA
from dlm_samplers.output import GenerationInterrupted, SamplerOutput
from dlm_samplers.parts import Part
from dlm_samplers.policies import FixedQuota, Policy
from dlm_samplers.randomness import request_keys
from dlm_samplers.remask import Remask
from dlm_samplers.run import Run
from dlm_samplers.schedules import TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import StoppingRule
from dlm_samplers.streaming import Streamer, StreamWriter, progress_bar
from dlm_samplers.verify import Verify

Callback = Callable[["Sampler", int, SamplerState], None]

STEPS_BETWEEN_CHECKS = {"cpu": 1}
"""Steps between two looks at which rows are finished. Looking costs nothing on a CPU and a device sync elsewhere."""
DEFAULT_STEPS_BETWEEN_CHECKS = 4


class Sampler:
    """Generates text with a masked diffusion language model. Use a subclass, which knows a family's conventions.

    model: any callable `model(input_ids [B, L], attention_mask=...) -> logits [B, L, V] or an object with .logits`.
    policy: which positions commit in a step; default: the one that `remask` brings, or the family's published sampler.
    cache: which positions a forward computes, the others' keys and values being kept.
    remask: which committed tokens are taken back or replaced.
    stopping: rules that finish a row early.
    length: rule by which rows start short and grow up to max_new_tokens; default: all of it at once.
    verify: makes several steps of one forward; the same tokens.
    spec: how to call the model; default: what `describe` says of it, or for a model that it does not know this class's
        contract, with mask_id, eos_id and `model.config`.
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
        cache: Cache | None = None,
        remask: Remask | None = None,
        stopping: Iterable[StoppingRule] = (),
        length: LengthRule | None = None,
        verify: Verify | None = None,
        spec: ModelSpec | None = None,
        mask_id: int | None = None,
        eos_id: int | None = None,
        backend: str | None = None,
    ) -> None:
        if spec is None:
            spec = self._describe(model, mask_id, eos_id)
        elif mask_id is not None or eos_id is not None:
            raise InvalidArgumentError("mask_id and eos_id belong inside spec when spec is given")
        self.spec = spec
        self.adapter = Adapter(model, spec)
        if cache is not None and not isinstance(cache, Cache):
            raise InvalidArgumentError(f"cache must be a Cache instance, got {cache!r}")
        self.cache = cache
        if remask is not None and not isinstance(remask, Remask):
            raise InvalidArgumentError(f"remask must be a Remask instance, got {remask!r}")
        if policy is None:
            policy = (remask.policy if remask is not None else None) or self.default_policy()
        if not isinstance(policy, Policy):
            raise InvalidArgumentError(f"policy must be a Policy instance, got {policy!r}")
        self.policy = policy
        self.remask = remask
        if spec.output != "logits" and remask is not None and type(remask).scored is Remask.scored:
            raise InvalidArgumentError(
                f"{type(remask).__name__} asks the model about tokens already there, and output={spec.output!r} says nothing "
                "of them; ReMDM takes tokens back without asking"
            )
        self.stopping = tuple(stopping)
        if length is not None and not isinstance(length, LengthRule):
            raise InvalidArgumentError(f"length must be a LengthRule instance, got {length!r}")
        self.length = length
        if verify is not None and not isinstance(verify, Verify):
            raise InvalidArgumentError(f"verify must be a Verify instance, got {verify!r}")
        self.verify = verify
        self.backend = backend
        for part in self.parts:
            part.check(self)

    def _describe(self, model: Any, mask_id: int | None, eos_id: int | None) -> ModelSpec:
        known = recognise(model, mask_id=mask_id, eos_id=eos_id)
        if known is None:
            return ModelSpec.of(model, mask_id=mask_id, eos_id=eos_id, **self.contract)
        spec = known.require_spec()
        if type(self) is not Sampler and spec.logit_shift != self.contract.get("logit_shift", 0):
            raise InvalidArgumentError(
                f"model: recognised as {known.family} ({known.because[0]}), whose output i predicts position "
                f"{'i + 1' if spec.logit_shift else 'i'}, and {type(self).__name__} is for the others. Use {known.sampler}, or "
                "pass spec= if the name misleads"
            )
        return spec

    @property
    def parts(self) -> tuple[Part, ...]:
        """Policy, cache, remasking, length and stopping rules, verification."""
        remask = None if self.remask is self.policy else self.remask
        found = (self.policy, self.cache, remask, self.length, *self.stopping, self.verify)
        return tuple(part for part in found if part is not None)

    def default_policy(self) -> Policy:
        """The family's published sampler."""
        return FixedQuota()

    @property
    def guarantee(self) -> Guarantee:
        """The weakest promise among the parts, relative to the family's published sampler with this policy's budget."""
        return Guarantee.weakest(part.guarantee for part in self.parts)

    def explain(self) -> str:
        """What the composition preserves, and which part it owes that to."""
        weakest = self.guarantee
        lines = [f"{weakest}: the weakest of"]
        for part in self.parts:
            mark = "<-" if part.guarantee == weakest else "  "
            lines.append(f"  {mark} {part}: {part.guarantee}. {part.promise}".rstrip())
        lines.append(
            "Given the same logits. A model whose arithmetic depends on the batch's shape may flip near ties between batches."
        )
        return "\n".join(lines)

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
        batch_size: int | None = None,
    ) -> SamplerOutput:
        """Fills the blanks of the prompts and continues them.

        input_ids: int64 [B, P], or a list of 1-D sequences of any lengths. Rows may be padded on the left or on the right.
        attention_mask: [B, P], 1 on real tokens, 0 on padding.
        editable: bool [B, P] (or a list of 1-D sequences): prompt positions to fill. Default: those that hold the mask
            token. With max_new_tokens=0 this is infilling.
        max_new_tokens: length of the generated region, one number or one per row; with a length rule the greatest.
        block_length: semi-autoregressive blocks of this many tokens; None: the whole canvas at once.
        steps: model evaluations for the whole generated region, spread evenly over its blocks; only for policies on a
            fixed schedule. Default: one token a step.
        temperature, top_k, top_p: sampling distribution of a token; temperature 0 takes the most likely one.
        cfg_scale: classifier-free guidance; 0 is off.
        seed, request_ids, generator: one seed gives request r the key (seed, r); a sequence of seeds gives every row its
            own; request_ids reproduces single rows of a batch. The tokens of a request depend on its key and its logits
            alone, not on the batch. A generator yields the seed.
        logits_processor: called as f(tokens [B, L], logits [B, L, V]) -> logits, rows aligned with positions. Under `verify`
            it sees several canvases of each row, so it has to be a function of a row's tokens and logits alone.
        callback_on_step_end: called as f(sampler, step, state) after each step, under `verify` after each
            forward; may change state.tokens in place.
        streamer: object with put(tokens), end() and optionally put_draft(value=canvas); for a single row.
        progress: a rich progress bar over committed tokens.
        return_history: keep the canvas after every step, under `verify` after every forward.
        batch_size: rows denoised together; a row that finishes makes room for the next. Default: all at once.

        Raises InvalidArgumentError before any work for arguments that cannot be met, and during it when the model's output
        has a wrong shape or NaN (naming the row); GenerationInterrupted, which carries the output so far, on Ctrl-C.
        """
        device = self._device(input_ids)
        prompts = read_prompts(input_ids, attention_mask, editable, self.spec, device)
        rows = prompts.tokens.shape[0]
        budget = _per_row("max_new_tokens", max_new_tokens, rows, device)
        block = self.default_block_length if block_length == "default" else block_length
        if self.spec.block_length is not None:
            block = self.spec.block_length if block_length == "default" else block
            if block != self.spec.block_length:
                raise InvalidArgumentError(
                    f"block_length must be {self.spec.block_length}, the block of the model's attention; got {block!r}"
                )
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
        if self.cache is not None and (cfg_scale or logits_processor is not None):
            asked = "cfg_scale" if cfg_scale else "logits_processor"
            raise InvalidArgumentError(f"{asked} needs logits of the whole canvas, so it goes without cache=")
        if temperature < 0 or temperature != temperature:
            raise InvalidArgumentError(f"temperature must be >= 0, got {temperature}")
        if not 0 < top_p <= 1:
            raise InvalidArgumentError(f"top_p must be in (0, 1], got {top_p}")
        if top_k < 0:
            raise InvalidArgumentError(f"top_k must be >= 0 (0 is off), got {top_k}")
        if batch_size is not None:
            _positive("batch_size", batch_size)
        # A cache computes windows, which attend by masks of its own.
        if self.cache is None and (self.length is not None or not bool(state.valid.all())):
            if self.spec.attention_mask == "none":
                raise InvalidArgumentError(
                    "input_ids: the rows have different lengths and the model cannot ignore padding "
                    "(spec.attention_mask is 'none'); generate rows of one length at a time, or with a cache"
                )
            require_honoured_padding(self.adapter)
        scoring = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "confidence": self.policy.statistics or self.confidence,
            "filter_order": self.filter_order,
            "backend": self.backend,
        }
        for part in self.parts:
            part.start(state)
        run = Run(state, batch_size, return_history)
        loop = Loop(self, run, scoring, cfg_scale, logits_processor)
        writer = StreamWriter(streamer, state, self.remask is not None) if streamer is not None else None
        check_every = STEPS_BETWEEN_CHECKS.get(device.type, DEFAULT_STEPS_BETWEEN_CHECKS)
        total = int(state.editable.sum()) if progress else 0
        step = 0
        try:
            with self._attention(), progress_bar(total) if progress else nullcontext() as show:
                while run.next_batch():
                    state = run.state
                    for _ in range(check_every):
                        loop.step(state)
                        if callback_on_step_end is not None:
                            callback_on_step_end(self, step, state)
                        if writer is not None:
                            writer.step(state)
                        run.record()
                        if show is not None:
                            show(max(total - run.open_positions(), 0))  # a length rule adds to both
                        state.enter_blocks()
                        step += 1
        except KeyboardInterrupt:
            raise GenerationInterrupted(run.output(self.spec, prompts, finished=False)) from None
        if writer is not None:
            writer.end(run.tokens, int(run.length[0]))
        return run.output(self.spec, prompts, finished=True)

    def score(self, evaluation: Evaluation, state: SamplerState, scoring: dict[str, Any]) -> TokenScores:
        """Statistics [B, L] of the positions `evaluation.scored`, from its output. `scoring`: keys and distribution."""
        width = evaluation.output.shape[-1] if evaluation.head is None else evaluation.head.weight.shape[0]
        never = [token for token in self.spec.never if token < width]
        return self.adapter.score(
            evaluation.output,
            evaluation.scored,
            shift=evaluation.shift,
            head=evaluation.head,
            **{"suppress_ids": never or None, **scoring},
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

    def _attention(self) -> AbstractContextManager[None]:
        return nullcontext() if self.cache is None else window_attention(self.adapter)

    def _device(self, input_ids: Any) -> torch.device:
        if isinstance(input_ids, Tensor):
            return input_ids.device
        return device_of(self.adapter.model)


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
