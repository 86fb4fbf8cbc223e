"""Two small transformers of the same size: `TinyDLM` (bidirectional, masked diffusion) and `TinyAR` (causal).

The trunk is `dlm_benches.transformer`'s with the switches of LLaDA's own code: layer norms, biases, one projection for queries,
keys and values; squared ReLU, a sixth of a training step cheaper than GELU on a CPU; beside the rotary positions a learned
embedding of the absolute position, which tasks such as reversal need. Positions count real tokens, so a row means the same
padded on the left, on the right or alone. No dropout. `LLaDAStyleModel.from_pretrained` reads the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlm_benches.transformer import Architecture, Trunk

if TYPE_CHECKING:
    from dlm_samplers.caches.attention import Window


@dataclass(frozen=True, kw_only=True)
class TinyConfig(Architecture):
    """Everything needed to rebuild a model: a `TinyDLM`, or with blocks of 1 a `TinyAR`. The file is a `LLaDAStyleConfig`'s.

    The slowest of the rotary angles turns once in about 500 positions: rows here have at most 256.
    Raises `ValueError`, naming the field, for an impossible value.
    """

    vocab_size: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    learned_positions: int
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    rope_theta: float = 100.0
    norm: Literal["rms", "layer"] = "layer"
    norm_eps: float = 1e-5
    activation: Literal["swiglu", "squared_relu"] = "squared_relu"
    bias: bool = True
    qkv_bias: bool = True
    fused_qkv: bool = True
    model_type: str = "dlm_kernels_llada_style"
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_token("eos_token_id")
        self.check_token("pad_token_id")
        for name, only in (("model_type", "dlm_kernels_llada_style"), ("tie_word_embeddings", False)):
            if getattr(self, name) != only:
                raise ValueError(f"{name}: expected {only!r}, got {getattr(self, name)!r}")
        if self.learned_positions is None:
            raise ValueError("learned_positions: expected a positive integer, got None")
        if self.block_length not in (None, 1):
            raise ValueError(f"block_length: expected None or 1, got {self.block_length}")

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


class _Tiny(nn.Module):
    """Trunk and head, as both models have them."""

    block_length: Literal[1] | None

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        if config.block_length != self.block_length:
            raise ValueError(f"config.block_length: expected {self.block_length}, got {config.block_length}")
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights, what is added to the residual stream zero, sinusoids for the positions.

        Sinusoids make a shift of position a linear map, which copying learns far sooner than from random positions.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.5 if "embed" in name else parameter.shape[1] ** -0.5)
        half, positions = self.config.hidden_size // 2, self.config.learned_positions
        frequency = (2.0 * positions) ** -(torch.arange(half) / half)
        angle = torch.arange(positions)[:, None] * frequency
        with torch.no_grad():
            self.model.embed_positions.weight.copy_(0.7 * torch.cat([angle.sin(), angle.cos()], dim=1))

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
        self._check(input_ids, attention_mask, position_ids)
        return self.model(input_ids, attention_mask, position_ids, dlm_window=dlm_window)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> TinyOutput:
        """Logits of every position; arguments as for `hidden`."""
        return TinyOutput(self.lm_head(self.hidden(input_ids, attention_mask, position_ids)).float())

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> None:
        if input_ids.dim() != 2 or input_ids.dtype != torch.int64:
            raise ValueError(
                f"input_ids: expected [B, L] int64, got {list(input_ids.shape)} {str(input_ids.dtype)[6:]}"
            )
        (batch, length), most = input_ids.shape, self.config.learned_positions
        if position_ids is None:
            if length > most:
                raise ValueError(f"input_ids: {length} positions, the model has {most}")
        elif position_ids.shape != input_ids.shape or position_ids.dtype != torch.int64:
            raise ValueError(
                f"position_ids: expected {[batch, length]} int64, got {list(position_ids.shape)} "
                f"{str(position_ids.dtype)[6:]}"
            )
        elif bool(((position_ids < 0) | (position_ids >= most)).any()):
            raise ValueError(f"position_ids: expected 0 to {most - 1}, all that the model has")
        if attention_mask is None:
            return
        got = f"{list(attention_mask.shape)} {str(attention_mask.dtype)[6:]}"
        if attention_mask.dim() == 4:
            if attention_mask.shape != (batch, 1, length, length) or attention_mask.dtype != torch.bool:
                raise ValueError(f"attention_mask: expected {[batch, 1, length, length]} bool, got {got}")
        elif attention_mask.shape != input_ids.shape or attention_mask.is_floating_point():
            raise ValueError(f"attention_mask: expected {list(input_ids.shape)} bool or integer, got {got}")


class TinyDLM(_Tiny):
    """Masked diffusion language model: every position sees every real position; predicts masked tokens in place.

    About 0.8M parameters at width 128, 4 layers. No time input. `logits[:, i]` belongs to position i (no shift).
    """

    block_length = None
    takes_dlm_window = True


class TinyAR(_Tiny):
    """The autoregressive twin: same trunk, causal; `logits[:, i]` predicts position i + 1."""

    block_length = 1

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
            if row.dim() != 1 or not 0 < len(row) <= self.config.learned_positions - max_new_tokens:
                raise ValueError(
                    f"prompts[{index}]: expected 1 to {self.config.learned_positions - max_new_tokens} ids, "
                    f"got shape {list(row.shape)}"
                )
        tokens = torch.full((len(rows), max_new_tokens), eos, dtype=torch.int64, device=device)
        nfe = torch.zeros(len(rows), dtype=torch.int64, device=device)
        if not rows or max_new_tokens == 0:
            return ARGeneration(tokens, nfe)
        length = torch.tensor([len(row) for row in rows], device=device)  # [B], real positions that are kept
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id)
        kept = _Kept(max_new_tokens)
        states = self.model(ids, past_key_values=kept)  # needs no mask: padding follows a row, which looks back alone
        logits = self.lm_head(states[torch.arange(len(rows), device=device), length - 1])
        column = torch.arange(ids.shape[1] + max_new_tokens, device=device)
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
                kept.take(going)
            kept.at = torch.arange(len(live), device=device), length
            visible = (column <= length[:, None])[:, None, None]
            states = self.model(chosen[:, None], visible, length[:, None], past_key_values=kept)
            logits = self.lm_head(states[:, 0])
            length = length + 1
        return ARGeneration(tokens, nfe)


class _Kept:
    """Keys and values of rows that end where they please, as transformers' `Cache` would be called.

    First the prompts are kept, with room for `room` more; then one token a row, where `at` says: rows and columns [B].
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.at: tuple[Tensor, Tensor] | None = None
        self.layers: list[tuple[Tensor, Tensor]] = []

    def get_seq_length(self) -> int:
        """0: the model is told positions and what is seen."""
        return 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keeps key and value [B, H, n, D]; what there is to attend to."""
        if self.at is None:
            self.layers.append((F.pad(key, (0, 0, 0, self.room)), F.pad(value, (0, 0, 0, self.room))))
            return key, value
        (rows, columns), (keys, values) = self.at, self.layers[layer_idx]
        keys[rows, :, columns], values[rows, :, columns] = key[:, :, 0], value[:, :, 0]
        return keys, values

    def take(self, rows: Tensor) -> None:
        """Keeps the rows of a mask alone."""
        self.layers = [(key[rows], value[rows]) for key, value in self.layers]


def build(config: TinyConfig) -> TinyDLM | TinyAR:
    """The model class that a config names, freshly initialised."""
    return TinyDLM(config) if config.block_length is None else TinyAR(config)
