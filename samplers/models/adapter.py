"""Calls a model for a batch of canvases and scores the positions a sampler asks for."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlm_kernels import InvalidArgumentError, TokenScores, score_hidden, score_tokens
from dlm_samplers.evaluation import Head, by_position
from dlm_samplers.models.own_attention import OwnAttention, own_attention, showing
from dlm_samplers.models.spec import ModelSpec
from dlm_samplers.models.until import Until

if TYPE_CHECKING:
    from dlm_samplers.caches.attention import Window

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


LOG_LINEAR_EPS = 1e-3
"""Of the log-linear noise that MDLM, SEDD and BD3-LM are trained on: at t = 1 this share of the tokens is still clean."""


class Adapter:
    """One model and its description. Stateless between calls.

    A log score is read as logits, the mask's own entry left out, which is exact. Let x have masks at the m positions M. Every
    token of x0 is kept with probability a = e^-sigma, independently, so p_t(x) = a^(L-m) (1-a)^m P(x0 agrees with x outside M).
    With token v in place of the mask at i it is a^(L-m+1) (1-a)^(m-1) P(the same, and v at i). The quotient is
    a / (1-a) * P(v at i | x outside M): in proportion to the posterior, with a factor that does not depend on v, so the softmax
    over the tokens is the posterior itself (RADD, arXiv:2406.03736, theorem 1).
    """

    def __init__(self, model: Callable[..., Any], spec: ModelSpec) -> None:
        if not callable(model):
            raise InvalidArgumentError(
                f"model must be callable: model(input_ids, ...) -> logits; got {type(model).__name__}"
            )
        self.model = model
        self.spec = spec
        # With spec.hidden: `lm_head` is the model's own, `head` the matrix that it is, where it is no more than that.
        self.head: Head | None = None
        self.lm_head: Callable[[Tensor], Tensor] | None = None
        self._trunk: Callable[..., Any] | None = None
        if spec.hidden is not None and spec.lm_head is not None:
            try:
                self._trunk = attrgetter(spec.hidden)(model)
                self.lm_head = attrgetter(spec.lm_head)(model)
                if spec.hidden_after is not None:
                    self._trunk = Until(self._trunk, attrgetter(spec.hidden_after)(model), spec.hidden_after)
            except AttributeError as error:
                named = {name: getattr(spec, name) for name in ("hidden", "lm_head", "hidden_after")}
                raise InvalidArgumentError(
                    ", ".join(f"spec.{name} = {path!r}" for name, path in named.items() if path is not None)
                    + f": {type(model).__name__} has no such attribute: {error}"
                ) from error
            self.head = as_matrix(self.lm_head)
            if self.head is None:
                warnings.warn(
                    f"spec.lm_head = {spec.lm_head!r} is a {type(self.lm_head).__name__} that does more than multiply by a "
                    "plain matrix (quantised, adapted or hooked): its own logits are used, [B, L, V] at once",
                    RuntimeWarning,
                    stacklevel=3,
                )

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return device_of(self.model)

    def forward(self, tokens: Tensor, valid: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """Logits [B, L, V] of tokens [B, L], in the model's own alignment; with `spec.hidden` those of the trunk and the head,
        as everywhere else.

        valid: bool [B, L], False on padding; None when there is none.
        noise: float [B], the noise level as the share of masks expected at it, for models that are given one. Default: the
            share that each row has.
        """
        if self._trunk is not None:
            return self.apply_head(self.hidden(tokens, valid))
        return self.whole(tokens, valid, noise)

    def whole(self, tokens: Tensor, valid: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """As `forward`, by a call of the model itself."""
        return self._call(self.model, "logits", "V", tokens, valid, noise)

    def hidden(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """What the LM head is applied to, [B, L, D]; as `forward`. Only with `spec.hidden`."""
        assert self._trunk is not None
        return self._call(self._trunk, "last_hidden_state", "D", tokens, valid)

    def apply_head(self, hidden: Tensor) -> Tensor:
        """Logits [B, L, V] of hidden states [B, L, D], by the model's own head. Only with `spec.lm_head`."""
        assert self.lm_head is not None
        return self.lm_head(hidden)

    def attend(self, tokens: Tensor, attention: Tensor, position_ids: Tensor, noise: Tensor | None = None) -> Tensor:
        """Logits [B, L, V] under an attention mask bool [B, L, L] and position ids [B, L]. With `spec.any_attention`."""
        assert self.spec.position_ids is not None
        kwargs = self._keywords(tokens, None, noise)
        kwargs |= {"attention_mask": attention[:, None], self.spec.position_ids: position_ids}
        return self._checked(self.model(tokens, **kwargs), "logits", "V", tokens)

    def _call(
        self,
        function: Callable[..., Any],
        name: str,
        last: str,
        tokens: Tensor,
        valid: Tensor | None,
        noise: Tensor | None = None,
    ) -> Tensor:
        spec = self.spec
        kwargs = self._keywords(tokens, valid, noise)
        if spec.attention_mask.startswith("4d_block"):
            kwargs["attention_mask"] = self._block_mask(tokens, valid)
        elif valid is not None:
            if spec.attention_mask == "2d":
                kwargs["attention_mask"] = valid.long()
            else:
                kwargs["attention_mask"] = valid[:, None, :, None] & valid[:, None, None, :]
        elif spec.full_attention_mask is not None:
            kwargs["attention_mask"] = spec.full_attention_mask
        if spec.position_ids is not None and (valid is not None or spec.attention_mask.startswith("4d_block")):
            kwargs[spec.position_ids] = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self._checked(function(tokens, **kwargs), name, last, tokens)

    def _keywords(self, tokens: Tensor, valid: Tensor | None, noise: Tensor | None) -> dict[str, Any]:
        """What every call is given besides tokens and attention."""
        spec, kwargs = self.spec, dict(self.spec.keywords)
        if spec.time_argument is None:
            return kwargs
        if not spec.sees_time and spec.output != "log_score":  # whose scale depends on sigma, and is infinite at 0
            kwargs[spec.time_argument] = torch.zeros(len(tokens), device=tokens.device)
            return kwargs
        if noise is None:
            masked = tokens == spec.mask_id
            noise = masked.float().mean(-1) if valid is None else (masked & valid).sum(-1) / valid.sum(-1).clamp(min=1)
        kwargs[spec.time_argument] = -torch.log1p(-(1 - LOG_LINEAR_EPS) * noise.float())
        return kwargs

    def _checked(self, output: Any, name: str, last: str, tokens: Tensor) -> Tensor:
        result = output if isinstance(output, Tensor) else getattr(output, name, None)
        if not isinstance(result, Tensor):
            raise InvalidArgumentError(
                f"model must return {name} or an object with .{name}, got {type(output).__name__}"
            )
        if result.ndim != 3 or result.shape[:2] != tokens.shape:
            raise InvalidArgumentError(
                f"model: expected {name} [B, L, {last}] = [{tokens.shape[0]}, {tokens.shape[1]}, {last}], "
                f"got {list(result.shape)}"
            )
        if self.spec.output == "log_score":
            mask = torch.full((1,), self.spec.mask_id, device=result.device)
            result = result.index_fill(-1, mask, -torch.inf)  # the score of a mask is 1 by definition and no token's
        return result

    @cached_property
    def own_attention(self) -> OwnAttention:
        """What a window has to answer; false where the model takes windows, or attends through transformers' interface.

        Raises InvalidArgumentError where it cannot be answered, or the model cannot be told where its columns stand.
        """
        if getattr(self.model, "takes_dlm_window", False):
            return OwnAttention()
        found = own_attention(self.model, self.spec.attention)
        if found and not found.knows_columns and self._trunk is not None and not self._takes_positions:
            raise InvalidArgumentError(
                f"cache: the columns that a forward computes need positions, and {type(self._trunk).__name__} takes no "
                f"{self._positions}; use cache=None"
            )
        return found

    @property
    def _positions(self) -> str:
        return self.spec.position_ids or "position_ids"

    @cached_property
    def _takes_positions(self) -> bool:
        assert self._trunk is not None
        return takes(self._trunk, self._positions)

    def window(self, tokens: Tensor, window: Window) -> Tensor:
        """Hidden states [b, n, D] of tokens [b, n] at the window's columns, attending as it says."""
        assert self._trunk is not None
        kwargs = dict(self.spec.keywords)
        if self.own_attention:
            if self._takes_positions:
                kwargs[self._positions] = window.columns
            kwargs |= self._any_mask(tokens)
            with showing(window) as here:
                output = self._trunk(tokens, **kwargs)
            kept = bool(here.answered)
        else:
            output = self._trunk(tokens, **kwargs, **{self._positions: window.columns, "dlm_window": window})
            kept = any(name.endswith(".key") for name in window.store)
        if not kept:
            raise InvalidArgumentError(
                f"cache: {type(self.model).__name__} attends past the cache: its forward took a window and kept no keys; use "
                "cache=None, or name the class of its attention modules, spec=ModelSpec(..., attention=...)"
            )
        return output if isinstance(output, Tensor) else output.last_hidden_state

    def _any_mask(self, tokens: Tensor) -> dict[str, Any]:
        """A mask of n inputs that the model's code takes, its content being left out: what is seen is the window's affair.

        A bool one hides everything, for SDAR's code goes past scaled_dot_product_attention where nothing is hidden.
        """
        spec, shape = self.spec, (len(tokens), 1, tokens.shape[1], tokens.shape[1])
        if spec.attention_mask == "4d_block":
            return {"attention_mask": torch.zeros(1, dtype=torch.bool, device=tokens.device).expand(shape)}
        if spec.attention_mask == "4d_block_additive":
            return {"attention_mask": torch.zeros(1, dtype=dtype_of(self.model), device=tokens.device).expand(shape)}
        return {} if spec.full_attention_mask is None else {"attention_mask": spec.full_attention_mask}

    def _block_mask(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        assert self.spec.block_length is not None
        block = torch.arange(tokens.shape[1], device=tokens.device) // self.spec.block_length
        mask = (block[:, None] >= block).expand(len(tokens), -1, -1)
        if valid is not None:
            # Padding sees itself, so that its softmax is finite.
            mask = (mask & valid[:, None]) | torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        if self.spec.attention_mask == "4d_block_additive":
            mask = torch.zeros(mask.shape, dtype=dtype_of(self.model), device=mask.device).masked_fill(
                ~mask, -torch.inf
            )
        return mask[:, None]

    def guided(
        self,
        tokens: Tensor,
        editable: Tensor,
        valid: Tensor | None,
        cfg_scale: float,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Classifier-free guided logits: unconditional + (cfg_scale + 1) (conditional - unconditional), [B, L, V].

        The unconditional input has every prompt token masked (LLaDA, arXiv:2502.09992, appendix A); both halves run as
        one batch of 2B. The combination is done in place.
        """
        prompt = ~editable if valid is None else ~editable & valid
        unconditional = tokens.masked_fill(prompt, self.spec.mask_id)
        twice = [None if of_rows is None else torch.cat([of_rows, of_rows]) for of_rows in (valid, noise)]
        logits, baseline = self.forward(torch.cat([tokens, unconditional]), *twice).chunk(2)
        return logits.sub_(baseline).mul_(cfg_scale + 1).add_(baseline)

    def align(self, logits: Tensor) -> Tensor:
        """Logits [B, L, V] such that row i predicts position i. A copy when the model's outputs are shifted."""
        return by_position(logits, self.spec.logit_shift, lambda rows, _: rows)

    def score(
        self, output: Tensor, eligible: Tensor, row_ids: Tensor, *, shift: int, head: Head | None = None, **scoring: Any
    ) -> TokenScores:
        """Statistics [B, L] at the eligible positions, whatever the alignment, without moving the output.

        output: logits [B, L, V] or, with `head`, hidden states [B, L, D].
        """

        def score(rows: Tensor, at: slice) -> TokenScores:
            here = {"eligible": eligible[:, at], "row_ids": row_ids[:, at], **scoring}
            if head is None:
                return score_tokens(rows, **here)
            return score_hidden(rows, head.weight, head.bias, **here)

        if shift == 0:
            return score(output, slice(None))
        first, rest = score(output[:, :1], slice(0, 1)), score(output[:, :-1], slice(1, None))
        return TokenScores(*(torch.cat(pair, dim=1) for pair in zip(first, rest, strict=True)))


def as_matrix(module: Any) -> Head | None:
    """The matrix that an LM head multiplies by; None when calling it does anything else.

    A quantised layer has no such matrix, or a tensor subclass that calls itself floating-point and only `linear` understands;
    a LoRA layer shows the matrix without what it adds to it; an offloaded one has it elsewhere.
    """
    if type(module) is not nn.Linear or "forward" in vars(module):
        return None
    plain = all(type(part) in (Tensor, nn.Parameter, type(None)) for part in (module.weight, module.bias))
    plain = plain and module.weight.is_floating_point() and not module.weight.is_meta
    hooked = module._forward_hooks or module._forward_pre_hooks
    return Head(module.weight, module.bias) if plain and not hooked else None


def takes(function: Callable[..., Any], keyword: str) -> bool:
    """True when a callable, or a module's forward, names this keyword: `**kwargs` may drop it."""
    try:
        return keyword in inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):
        return False


def device_of(model: Any) -> torch.device:
    """Where a model's parameters are; the CPU for a callable without any."""
    first = next(_parameters(model), None)
    return torch.device("cpu") if first is None else first.device


def dtype_of(model: Any) -> torch.dtype:
    """Of a model's floating-point parameters, the first; float32 for a callable without any."""
    return next((p.dtype for p in _parameters(model) if p.is_floating_point()), torch.float32)


def _parameters(model: Any) -> Iterator[Tensor]:
    parameters = getattr(model, "parameters", None)
    return iter(parameters()) if callable(parameters) else iter(())
