"""Two small transformers of the same size: `TinyDLM` (bidirectional, masked diffusion) and `TinyAR` (causal).

Pre-norm blocks without dropout; squared ReLU (Primer, arXiv:2109.08668), a sixth of a training step cheaper than GELU
on a CPU; rotary positions in every block (arXiv:2104.09864) beside a learned embedding of the absolute position, which
tasks such as reversal need. Positions count real tokens, so a row means the same padded on the left, on the right or
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from dlm_samplers.caches.attention import Window

ROTARY_BASE = 100.0
"""The slowest of the rotary angles turns once in about 500 positions: rows here have at most 256."""


@dataclass(frozen=True)
class TinyConfig:
    """Everything needed to rebuild a model. Raises `ValueError`, naming the field, for an impossible value."""

    model_type: Literal["tiny-dlm", "tiny-ar"]
    vocab_size: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    max_length: int
    width: int = 128
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        if self.model_type not in ("tiny-dlm", "tiny-ar"):
            raise ValueError(f"model_type: expected 'tiny-dlm' or 'tiny-ar', got {self.model_type!r}")
        for name in ("vocab_size", "max_length", "width", "layers", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < self.vocab_size:
                raise ValueError(f"{name}: expected an integer in [0, {self.vocab_size}), got {value!r}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width: {self.width} does not divide into {self.heads} heads of an even size")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class TinyOutput:
    """What a forward returns: logits [B, L, V] float32."""

    logits: Tensor


@dataclass
class ARGeneration:
    """Greedy tokens [B, max_new_tokens] int64, EOS after a row's end; nfe [B] int64, forwards the row took part in."""

    tokens: Tensor
    nfe: Tensor


Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each [L or B, L, 1, 1, D / heads / 2]."""


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotary embedding of x [B, L, ..., D / heads]: component i turns with component i + D / heads / 2."""
    cosine, sine = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class Block(nn.Module):
    """Attention and MLP, each added to its input."""

    def __init__(self, config: TinyConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)

    def project(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of x [B, L, D], each [B, heads, L, D / heads]."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key = rotate(qkv[:, :, :2], angles).transpose(1, 3).unbind(dim=2)
        return query, key, qkv[:, :, 2].transpose(1, 2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [B, L, D] plus the attention result [B, heads, L, D / heads], then the MLP."""
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norm2(x))).square())

    def forward(
        self, x: Tensor, angles: Angles, bias: Tensor | None, causal: bool, dlm_window: Window | None = None
    ) -> Tensor:
        query, key, value = self.project(x, angles)
        if dlm_window is not None:
            return self.finish(x, dlm_window.attend(self.number, query, key, value).transpose(1, 2))
        return self.finish(x, F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal))


class _Tiny(nn.Module):
    """The trunk both models share."""

    causal: bool
    model_type: Literal["tiny-dlm", "tiny-ar"]
    cosine: Tensor
    sine: Tensor

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        if config.model_type != self.model_type:
            raise ValueError(f"config.model_type: expected {self.model_type!r}, got {config.model_type!r}")
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.blocks = cast("Sequence[Block]", nn.ModuleList(Block(config, i) for i in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        half = config.width // config.heads // 2
        angle = torch.arange(config.max_length)[:, None] / ROTARY_BASE ** (torch.arange(half) / half)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights, what is added to the residual stream zero, sinusoids for the positions.

        Sinusoids make a shift of position a linear map, which copying learns far sooner than from random positions.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight", "bias")):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.5 if "embedding" in name else parameter.shape[1] ** -0.5)
        half = self.config.width // 2
        frequency = (2.0 * self.config.max_length) ** -(torch.arange(half) / half)
        angle = torch.arange(self.config.max_length)[:, None] * frequency
        with torch.no_grad():
            self.position_embedding.weight.copy_(0.7 * torch.cat([angle.sin(), angle.cos()], dim=1))

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        dlm_window: Window | None = None,
    ) -> Tensor:
        """Final normalised states: [B, L] int64 -> [B, L, D] float.

        attention_mask: [B, L] bool or integer, 1 = real; or [B, 1, L, L] bool, which keys (last) a query may look at.
        position_ids: [B, L] int64, which may repeat; default: real positions counted from 0, all of them under a mask of
            four dimensions.
        dlm_window: the columns that these inputs are, beside which attention reads kept keys and values.
        `lm_head(hidden(...))` are the logits. States at padded positions are finite and mean nothing.
        Raises `ValueError` for a wrong rank, dtype, shape, a row that is too long, a position the model does not have.
        """
        positions, bias = self._positions_and_bias(input_ids, attention_mask, position_ids)
        x, angles = self._embed(input_ids, positions)
        for block in self.blocks:
            x = block(x, angles, bias, self.causal and bias is None, dlm_window=dlm_window)
        return self.norm(x)

    def _embed(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Angles]:
        """What enters the first block [B, L, D], and the rotary angles; positions [L] or [B, L]."""
        angles = self.cosine[positions][..., None, None, :], self.sine[positions][..., None, None, :]
        return self.token_embedding(ids) + self.position_embedding(positions), angles

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> TinyOutput:
        """Logits of every position; arguments as for `hidden`."""
        return TinyOutput(self.lm_head(self.hidden(input_ids, attention_mask, position_ids)).float())

    def _positions_and_bias(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if input_ids.dim() != 2 or input_ids.dtype != torch.int64:
            raise ValueError(
                f"input_ids: expected [B, L] int64, got {list(input_ids.shape)} {str(input_ids.dtype)[6:]}"
            )
        batch, length = input_ids.shape
        if position_ids is None:
            if length > self.config.max_length:
                raise ValueError(f"input_ids: {length} positions, the model has {self.config.max_length}")
            positions = torch.arange(length, device=input_ids.device)
        else:
            if position_ids.shape != input_ids.shape or position_ids.dtype != torch.int64:
                raise ValueError(
                    f"position_ids: expected {[batch, length]} int64, got {list(position_ids.shape)} "
                    f"{str(position_ids.dtype)[6:]}"
                )
            if bool(((position_ids < 0) | (position_ids >= self.config.max_length)).any()):
                raise ValueError(f"position_ids: expected 0 to {self.config.max_length - 1}, all that the model has")
            positions = position_ids
        if attention_mask is None:
            return positions, None
        if attention_mask.dim() == 4:
            if attention_mask.shape != (batch, 1, length, length) or attention_mask.dtype != torch.bool:
                raise ValueError(
                    f"attention_mask: expected {[batch, 1, length, length]} bool, "
                    f"got {list(attention_mask.shape)} {str(attention_mask.dtype)[6:]}"
                )
            visible = attention_mask
        else:
            if attention_mask.shape != input_ids.shape or attention_mask.is_floating_point():
                raise ValueError(
                    f"attention_mask: expected {list(input_ids.shape)} bool or integer, "
                    f"got {list(attention_mask.shape)} {str(attention_mask.dtype)[6:]}"
                )
            real = attention_mask != 0
            visible = real[:, None, None, :]
            if position_ids is None:
                positions = (real.cumsum(dim=1) - 1).clamp_(min=0)
        if self.causal:
            visible = visible & torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
        # Finite, so that a row of padding alone stays finite; exp() of it is exactly 0 beside any real key.
        bias = torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, -1e9)
        return positions, bias.to(self.token_embedding.weight.dtype)


class TinyDLM(_Tiny):
    """Masked diffusion language model: every position sees every real position; predicts masked tokens in place.

    About 0.8M parameters at width 128, 4 layers. No time input. `logits[:, i]` belongs to position i (no shift).
    """

    causal = False
    model_type: Literal["tiny-dlm"] = "tiny-dlm"
    takes_dlm_window = True


class TinyAR(_Tiny):
    """The autoregressive twin: same trunk, causal; `logits[:, i]` predicts position i + 1."""

    causal = True
    model_type: Literal["tiny-ar"] = "tiny-ar"

    @torch.inference_mode()
    def generate(
        self, prompts: Tensor | Sequence[Sequence[int] | Tensor], max_new_tokens: int, eos: int | None = None
    ) -> ARGeneration:
        """Greedy continuation with a key-value cache, all rows together; a row stops at its EOS.

        prompts: [B, P] int64, or B prompts of any lengths of at least 1. eos: default the config's.
        Raises `ValueError` for an empty prompt or one that leaves no room for `max_new_tokens`.
        """
        eos = self.config.eos_token_id if eos is None else eos
        device = self.lm_head.weight.device
        rows = [torch.as_tensor(row, dtype=torch.int64, device=device) for row in prompts]
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens: expected 0 or more, got {max_new_tokens}")
        for index, row in enumerate(rows):
            if row.dim() != 1 or not 0 < len(row) <= self.config.max_length - max_new_tokens:
                raise ValueError(
                    f"prompts[{index}]: expected 1 to {self.config.max_length - max_new_tokens} ids, "
                    f"got shape {list(row.shape)}"
                )
        tokens = torch.full((len(rows), max_new_tokens), eos, dtype=torch.int64, device=device)
        nfe = torch.zeros(len(rows), dtype=torch.int64, device=device)
        if not rows or max_new_tokens == 0:
            return ARGeneration(tokens, nfe)
        length = torch.tensor([len(row) for row in rows], device=device)  # [B], real positions in the cache
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id)
        logits, cache = self._prefill(ids, length, max_new_tokens)
        live = torch.arange(len(rows), device=device)  # rows that have not ended
        for step in range(max_new_tokens):
            chosen = logits.argmax(dim=-1)
            tokens[live, step] = chosen
            nfe[live] += 1
            going = chosen != eos
            if step + 1 == max_new_tokens or not going.any():
                break
            if not going.all():
                live, chosen, length = live[going], chosen[going], length[going]
                cache = [(key[going], value[going]) for key, value in cache]
            logits = self._decode(chosen, length, cache)
            length = length + 1
        return ARGeneration(tokens, nfe)

    def _prefill(self, ids: Tensor, length: Tensor, room: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits after each prompt [B, V] and caches of P + room positions. Later positions need no mask: causal."""
        batch, width = ids.shape
        x, angles = self._embed(ids, torch.arange(width, device=ids.device))
        cache = []
        for block in self.blocks:
            query, key, value = block.project(x, angles)
            cache.append((F.pad(key, (0, 0, 0, room)), F.pad(value, (0, 0, 0, room))))
            x = block.finish(x, F.scaled_dot_product_attention(query, key, value, is_causal=True))
        last = x[torch.arange(batch, device=ids.device), length - 1]
        return self.lm_head(self.norm(last)), cache

    def _decode(self, chosen: Tensor, length: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """One token a row [B] at position `length` [B]; writes the caches in place. -> logits [B, V]."""
        x, angles = self._embed(chosen[:, None], length[:, None])
        rows = torch.arange(len(chosen), device=chosen.device)
        visible = torch.arange(cache[0][0].shape[2], device=chosen.device) <= length[:, None]
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            query, key, value = block.project(x, angles)
            keys[rows, :, length] = key[:, :, 0]
            values[rows, :, length] = value[:, :, 0]
            x = block.finish(
                x, F.scaled_dot_product_attention(query, keys, values, attn_mask=visible[:, None, None, :])
            )
        return self.lm_head(self.norm(x[:, 0]))


def build(config: TinyConfig) -> TinyDLM | TinyAR:
    """The model class that a config names, freshly initialised."""
    return TinyDLM(config) if config.model_type == "tiny-dlm" else TinyAR(config)
