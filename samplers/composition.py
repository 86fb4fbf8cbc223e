"""The parts of a sampler before the model is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from dlm_kernels import InvalidArgumentError
from dlm_kernels.dispatch import announce
from dlm_samplers.caches import BlockCache, Cache
from dlm_samplers.lengths import LengthRule
from dlm_samplers.models import ModelSpec
from dlm_samplers.policies import LowConfidenceDynamic, Policy
from dlm_samplers.remask import Remask
from dlm_samplers.sampler import DreamSampler, LLaDASampler, Sampler
from dlm_samplers.stopping import StoppingRule
from dlm_samplers.verify import Verify


@dataclass(frozen=True)
class Composition:
    """What `Sampler` takes beside the model and its description.

    cache="auto": `BlockCache` for a block-causal model, which changes nothing; where it does not go with the model or with
        another part, none, which a warning says once.
    """

    policy: Policy | None = None
    cache: Cache | Literal["auto"] | None = "auto"
    remask: Remask | None = None
    stopping: Iterable[StoppingRule] = ()
    length: LengthRule | None = None
    verify: Verify | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stopping", tuple(self.stopping))

    def sampler(self, model: Any, spec: ModelSpec, *, default: Policy | None = None) -> Sampler:
        """default: the policy where neither `policy` nor `remask` brings one; None: the family's published one."""
        family = DreamSampler if spec.logit_shift else LLaDASampler
        policy = self.policy or (self.remask.policy if self.remask is not None else None) or default
        if policy is None and spec.block_length is not None:
            policy = LowConfidenceDynamic()

        def build(cache: Cache | None) -> Sampler:
            return family(
                model,
                spec=spec,
                policy=policy,
                cache=cache,
                remask=self.remask,
                stopping=self.stopping,
                length=self.length,
                verify=self.verify,
                backend=self.backend,
            )

        if self.cache != "auto":
            return build(self.cache)
        if spec.block_length is not None:
            try:
                return build(BlockCache())
            except InvalidArgumentError as error:
                announce(
                    f"{type(model).__name__}: finished blocks are computed anew in every forward, for cache='auto' finds no "
                    f"cache that fits. {error}",
                    stacklevel=4,
                )
        return build(None)
