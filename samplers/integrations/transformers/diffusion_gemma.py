"""DiffusionGemma of transformers with its whole denoising step on this library's kernels.

DiffusionGemmaSampler(model).generate(input_ids, max_new_tokens=512)   # was: model.generate(input_ids, max_new_tokens=512)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from dlm_kernels import InvalidArgumentError, arguments
from dlm_samplers.randomness import request_keys

try:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        DiffusionGemmaGenerationConfig,
        DiffusionGemmaGenerationMixin,
    )
except ImportError as error:
    raise ImportError(
        f"DiffusionGemma came with transformers 5.11, this is {transformers.__version__}: "
        "pip install --upgrade 'transformers>=5.11'"
    ) from error

from dlm_samplers.integrations.transformers.diffusion_gemma_step import HOOKS, FusedGeneration

MADE_BY_GENERATE = frozenset(
    (
        *("self", "kwargs", "input_ids", "past_key_values", "position_ids", "inputs_embeds"),
        *("decoder_attention_mask", "decoder_position_ids"),
    )
)
HINTS = {
    "entropy_bound": "; give sampler_config=EntropyBoundSamplerConfig(entropy_bound=...)",
    "temperature": "; the temperature falls from t_max to t_min",
}


class DiffusionGemmaSampler:
    """`model.generate` of DiffusionGemma: same arguments, same outputs, no tensor of the logits' size but the logits.

    Given the draws, the tokens are the original's. Differences:

    - Tokens and noise are drawn by numbers keyed by (seed, request, position, step), not from torch's global generator: a
      request's tokens depend on its seed and its logits alone, not on its batch. Without a seed torch's generator gives one.
    - An argument that is neither a setting nor an input of the model raises (original: takes no notice of it, be it
      `temperature`, `entropy_bound` or `custom_generate`).
    - Every call runs with its own settings (original: with a static cache the first call's entropy bound, for good).
    - The model stays as it is (original: a static cache and compiled functions stay on it, one in its `state_dict`). They are
      kept here, and go with the sampler. The caller's lists of processors and stopping criteria stay as they are (original:
      its own are added to them, so that a second call has the temperature twice).
    - A row that has ended is not waited for in later canvases: they are padding (original: denoised to the last step).
    - Entropies are summed in fp64, and equal ones accepted from the left (original: fp32; open, its sort is not stable). A sum
      of entropies that is closer to the bound than fp32 rounding may fall on the other side.
    - Prompts padded on the right raise (original: the canvas follows the padding, at other positions than without it).
    - NaN logits raise, naming the row (original: RuntimeError from `torch.multinomial`).

    Self-conditioning takes the tempered logits in the embedding's dtype, which is a second tensor of that size if that is not
    fp32. So are logits that a `logits_processor` returns, or that come from a compiled forward, and are then divided.

    model: a DiffusionGemmaForBlockDiffusion; it is not changed.
    backend: kernel backend, see `dlm_kernels.use_backend`; None chooses by device.
    """

    def __init__(self, model: Any, *, backend: str | None = None) -> None:
        if not isinstance(model, DiffusionGemmaGenerationMixin):
            raise InvalidArgumentError(f"model must be a DiffusionGemmaForBlockDiffusion, got {type(model).__name__}")
        missing = [name for name in HOOKS if not hasattr(DiffusionGemmaGenerationMixin, name)]
        if missing:
            raise InvalidArgumentError(
                f"transformers {transformers.__version__} generates in another way than 5.23: "
                f"its DiffusionGemmaGenerationMixin has no {', '.join(missing)}"
            )
        arguments.backend_name(backend)
        self.model = model
        self.backend = backend
        self._kept: dict[str, Any] = {}

    def generate(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        streamer: Any = None,
        generation_config: DiffusionGemmaGenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        *,
        seed: int | Sequence[int] | Tensor | None = None,
        request_ids: Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `DiffusionGemmaForBlockDiffusion.generate`, which explains the arguments up to stopping_criteria.

        seed, request_ids, generator: one seed gives request r the key (seed, r); a sequence of seeds gives every row its
            own; request_ids reproduces single rows of a batch. A generator yields the seed; without any of them torch's
            global one does, so that `torch.manual_seed` decides.
        kwargs: settings of DiffusionGemmaGenerationConfig, which go before those of `generation_config`, and inputs of the
            model (attention_mask, pixel_values, decoder_input_ids, ...); None is as good as leaving an input out.

        Returns DiffusionGemmaGenerationOutput, or its sequences int64 [B, L] with return_dict_in_generate=False.

        Raises InvalidArgumentError for what it does not know or cannot do, before any work but for NaN logits; what the
        original raises for settings outside their range is a ValueError too.
        """
        arguments.tensor("input_ids", input_ids, (torch.int64,), (None, None))
        inputs, settings = self._sorted(kwargs)
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] and not bool(mask[:, -1].all()):
            raise InvalidArgumentError("attention_mask: pad the prompts on the left")
        if seed is None:
            seed = 0 if generator is not None else int(torch.randint(2**63 - 1, ()))
        keys = request_keys(seed, request_ids, generator, len(input_ids), input_ids.device)
        return FusedGeneration(self.model, self._kept, *keys, self.backend).generate(
            input_ids,
            past_key_values=past_key_values,
            streamer=streamer,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            **inputs,
            **settings,
        )

    def _sorted(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(inputs of the model, settings)."""
        allowed = {name for name in vars(DiffusionGemmaGenerationConfig()) if not name.startswith("_")}
        forwards = type(self.model).forward, type(self.model.model.encoder).forward
        takes = {name for forward in forwards for name in inspect.signature(forward).parameters} - MADE_BY_GENERATE
        for name in kwargs.keys() - allowed - takes:
            raise InvalidArgumentError(
                f"generate() got {name!r}, which is neither a setting ({', '.join(sorted(allowed))}) "
                f"nor an input of the model ({', '.join(sorted(takes))}){HINTS.get(name, '')}"
            )
        inputs = {name: value for name, value in kwargs.items() if name not in allowed and value is not None}
        return inputs, {name: value for name, value in kwargs.items() if name in allowed}


def generate(model: Any, input_ids: Tensor, **kwargs: Any) -> Any:
    """`DiffusionGemmaSampler(model).generate(input_ids, ...)` for one call, with the signature of a `custom_generate`.

    DiffusionGemma's own `generate` takes no `custom_generate`, so this is to be called, not passed. Static caches and
    compiled functions do not outlive the call.
    """
    return DiffusionGemmaSampler(model).generate(input_ids, **kwargs)
