"""Recognises a model by its names and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models.families import FAMILIES, Contract, Family, Ids
from dlm_samplers.models.seen import Seen
from dlm_samplers.models.spec import ModelSpec

TEMPLATE = """\
  ModelSpec(
      mask_id=...,              # the mask token
      eos_id=...,               # end of text, or None
      logit_shift=0,            # 1 if output i predicts position i + 1
      attention_mask="2d",      # "none", "2d", "4d_bool", "4d_block", "4d_block_additive"
      block_length=None,        # of block-causal attention
      time_argument=None,       # keyword of the noise level, if there is one
      output="logits",          # "subs", "log_score"
  )"""


class UnknownModelError(InvalidArgumentError):
    """No family has this model's names. The message says what was looked at and shows a description to fill in."""


@dataclass(frozen=True)
class Description:
    """What `describe` found.

    family: such as "Dream". because: the names that say so.
    spec: how to call the model; None: no sampler of masked models can drive it, and `instead` says why and what can.
    sampler: name of the sampler class that follows the family's conventions.
    notes: traps and assumptions.
    token_ranges: of a multimodal vocabulary, by modality.
    """

    family: str
    because: tuple[str, ...]
    spec: ModelSpec | None
    sampler: str | None = None
    notes: tuple[str, ...] = ()
    instead: str | None = None
    token_ranges: Mapping[str, range] | None = None

    def require_spec(self) -> ModelSpec:
        """The spec. Raises InvalidArgumentError, saying what to use, for a model without masks."""
        if self.spec is None:
            raise InvalidArgumentError(f"model: recognised as {self.family} ({self.because[0]}): {self.instead}")
        return self.spec

    def __str__(self) -> str:
        lines = [f"{self.family}: {'; '.join(self.because)}"]
        lines.append(f"  {self.spec}" if self.spec is not None else f"  no ModelSpec: {self.instead}")
        if self.sampler is not None:
            lines.append(f"  sampler: {self.sampler}")
        lines += [f"  {name} tokens: {ids.start} to {ids.stop - 1}" for name, ids in (self.token_ranges or {}).items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def describe(model: Any, *, mask_id: int | None = None, eos_id: int | None = None) -> Description:
    """How to call a model, from its class names, `config.model_type`, `config.architectures` and configuration fields.

    Nothing is imported, downloaded or run, so what it says is what such models do: `probe(model, description.spec)` tests
    whether this one does. Looks through PEFT, torch.compile, DataParallel and DDP.

    mask_id, eos_id: instead of the configuration's. Where no configuration has them, the published ids are taken if the
        vocabulary has the size they go with.

    Raises UnknownModelError where no family has these names; InvalidArgumentError where one does and a mask token or block
    length cannot be found.
    """
    found = recognise(model, mask_id=mask_id, eos_id=eos_id)
    if found is None:
        raise UnknownModelError(
            f"model: not recognised. Looked at\n{Seen.of(model)}\nDescribe it, and test that by probe(model, spec):\n{TEMPLATE}"
        )
    return found


def recognise(model: Any, *, mask_id: int | None = None, eos_id: int | None = None) -> Description | None:
    """As `describe`; None where no family has these names."""
    seen = Seen.of(model)
    found = _families(seen)
    if not found:
        return None
    (reason, _), family = min(found, key=lambda item: item[0][1])  # the first of equals
    contract = family.contract(seen)
    because = (reason, *(f"inside {wrapper}" for wrapper in seen.wrappers))
    if contract.arguments is None:
        return Description(family.name, because, None, instead=contract.instead)
    return Description(
        family.name,
        because,
        _spec(seen, contract, mask_id, eos_id, f"{family.name} ({reason})"),
        contract.sampler,
        contract.notes,
        token_ranges=contract.token_ranges or None,
    )


def has_published_name(model: Any) -> bool:
    """True where `recognise` knows the names, whatever it then makes of the configuration."""
    return bool(_families(Seen.of(model)))


def _families(seen: Seen) -> list[tuple[tuple[str, tuple[int, int]], Family]]:
    return [(evidence, family) for family in FAMILIES if (evidence := family.evidence(seen)) is not None]


def _spec(seen: Seen, contract: Contract, mask_id: int | None, eos_id: int | None, family: str) -> ModelSpec:
    assert contract.arguments is not None
    vocab_size = contract.vocab_size
    if vocab_size is None:
        stated = seen.setting("vocab_size") or getattr(seen.inner, "vocab_size", None)
        vocab_size = stated if isinstance(stated, int) else None
    known_mask, known_eos = _known(contract.ids, vocab_size)
    if mask_id is None:
        mask_id = contract.mask_id if contract.mask_id is not None else seen.token("mask_token_id", "mask_id")
    if mask_id is None:
        mask_id = known_mask
    if mask_id is None:
        raise InvalidArgumentError(
            f"mask_id is missing: recognised as {family}, whose configuration names no mask token and whose vocabulary of "
            f"{vocab_size} tokens is not a known one. Pass mask_id="
        )
    if eos_id is None:
        eos_id = seen.token("eos_token_id", "eos_id")
    if eos_id is None and mask_id == known_mask:
        eos_id = known_eos
    if vocab_size is not None and vocab_size <= max(mask_id, eos_id or 0):
        vocab_size = None  # checkpoints pad the embedding, not the other way round: a smaller value is wrong
    return ModelSpec(**{"mask_id": mask_id, "eos_id": eos_id, "vocab_size": vocab_size, **contract.arguments})


def _known(ids: Ids, vocab_size: int | None) -> tuple[int | None, int | None]:
    for mask_id, eos_id, sizes in ids:
        if vocab_size is not None and vocab_size in sizes:
            return mask_id, eos_id
    return None, None
