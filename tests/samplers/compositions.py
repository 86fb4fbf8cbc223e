"""Random compositions of every part there is, for hypothesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fakes import SpikeModel, TableModel
from hypothesis import strategies as st

import dlm_samplers as s
from dlm_kernels import InvalidArgumentError

MASK, EOS = 22, 3
unit = st.floats(0.05, 1.0)
count = st.integers(1, 4)

THRESHOLDS = st.builds(s.Threshold, tau=unit)
FREQUENCIES = s.background_frequencies([range(MASK + 1), [1, 2, 3] * 20], vocabulary=MASK + 1)

POLICIES = {
    s.AdaBlock: st.builds(
        s.AdaBlock,
        delimiters=st.sampled_from([(5,), (5, 6, 7, 8)]),
        tau_d=unit,
        window=unit,
        inner=THRESHOLDS | st.builds(s.FixedQuota, tokens_per_step=count),
    ),
    s.AncestralUnmask: st.builds(s.AncestralUnmask),
    s.CappedThreshold: st.builds(s.CappedThreshold, tau=unit),
    s.Credit: st.builds(s.Credit, tau=unit, alpha=st.floats(0.0, 3.0), k=count),
    s.Dilated: st.builds(s.Dilated, base=st.integers(2, 4)),
    s.EntropyBound: st.builds(
        s.EntropyBound, gamma=st.floats(0.0, 3.0), statistics=st.sampled_from([None, "model", "sampling"])
    ),
    s.EventDriven: st.builds(
        s.EventDriven, grid=st.none() | st.integers(1, 40), alpha=st.sampled_from(["linear", "cosine"])
    ),
    s.ExploreOne: st.builds(s.ExploreOne, inner=THRESHOLDS | st.builds(s.AncestralUnmask) | st.builds(s.FixedQuota)),
    s.Factor: st.builds(s.Factor, f=st.floats(0.1, 3.0), upstream_quirk=st.booleans()),
    s.FixedQuota: st.builds(
        s.FixedQuota,
        order=st.sampled_from(["confidence", "margin", "entropy", "random", "left_to_right"]),
        schedule=st.sampled_from([s.Linear(), s.TimeGrid()]),
        tokens_per_step=st.none() | count,
        order_temperature=st.sampled_from([0.0, 0.0, 0.5]),
    ),
    s.FrozenConfidence: st.builds(
        s.FrozenConfidence, every=st.integers(1, 9), order=st.sampled_from(["margin", "entropy"])
    ),
    s.Hierarchical: st.builds(s.Hierarchical, tau=unit, tau_low=unit),
    s.KLStable: st.builds(s.KLStable, tau_c=unit, epsilon=st.floats(0.01, 3.0), history=count, u=count, k=count),
    s.LocalLeap: st.builds(s.LocalLeap, tau=unit, tau_low=unit, radius=st.integers(0, 9)),
    s.LowConfidenceDynamic: st.builds(
        s.LowConfidenceDynamic, tau=st.sampled_from([0.0, 0.5, 0.9, 2.0]), denoising_steps=st.none() | st.integers(1, 9)
    ),
    s.Margin: st.builds(s.Margin, tau=unit),
    s.SlowFast: st.builds(s.SlowFast, tau_min=unit, tau_high=unit, most_slow=st.integers(4, 8), window=count, u=count),
    s.PCSampler: st.builds(
        s.PCSampler,
        background=st.just(FREQUENCIES),
        lam=st.floats(0.0, 2.0),
        alpha=st.floats(0.1, 10.0),
        inner=st.builds(s.FixedQuota, tokens_per_step=st.none() | count),
    ),
    s.Saber: st.builds(s.Saber, n=count),
    s.Threshold: st.builds(s.Threshold, tau=unit, strict=st.booleans()),
}
POLICIES[s.Spaced] = st.builds(
    s.Spaced,
    inner=st.one_of(list(POLICIES.values())).filter(lambda policy: not policy.scheduled),
    distance=st.integers(2, 9),
    relax=st.booleans(),
)
REMASK = {
    s.ConfidenceDrop: st.builds(s.ConfidenceDrop, n=st.integers(0, 6), mu=count),
    s.ReMDM: st.builds(s.ReMDM, kind=st.sampled_from(["cap", "rescale", "conf", "loop"]), eta=st.none() | unit),
    s.SelfPlanning: st.builds(s.SelfPlanning, eta=st.floats(0.0, 3.0)),
    s.ShadowVerify: st.builds(s.ShadowVerify),
    s.TokenEditing: st.builds(s.TokenEditing, tau_edit=st.floats(0.0, 1.0), max_post_steps=st.integers(0, 3)),
}
STOPPING = {
    s.EndOfText: st.builds(s.EndOfText),
    s.Prophet: st.builds(s.Prophet, answer_start=st.integers(0, 6), early=st.floats(0.0, 8.0)),
    s.SchED: st.builds(s.SchED, curve=st.sampled_from(["linear", "cosine", "exponential"]), settled=st.booleans()),
    s.StableAndConfident: st.builds(s.StableAndConfident, confidence_threshold=st.floats(0.001, 2.0)),
}
VERIFY = {s.DraftVerify: st.builds(s.DraftVerify, width=st.integers(1, 7))}
LENGTHS = {
    s.DAEDAL: st.builds(
        s.DAEDAL, l_init=st.integers(1, 8), e_factor=st.integers(2, 5), tau_eos=unit, w_eos=st.integers(2, 6)
    ),
}
CACHES = {
    s.BlockCache: st.builds(s.BlockCache),
    s.DelayedCache: st.builds(s.DelayedCache),
    s.DualCache: st.builds(s.DualCache),
    s.FeatureCache: st.builds(s.FeatureCache),
    s.PrefixCache: st.builds(s.PrefixCache),
    s.SparseCache: st.builds(s.SparseCache),
    s.SuffixWindow: st.builds(s.SuffixWindow),
}
"""They need a transformer: `caches/test_caches.py` has their properties."""


class MaskLover(TableModel):
    """Whose best guess is the mask token everywhere."""

    def __init__(self, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self.table[:, self.mask] = 50.0


class Ended(TableModel):
    """Sure of the end of text from the first position on."""

    def __init__(self, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self.table[:, EOS] += 12.0


class Flat(TableModel):
    """Ties everywhere."""

    def __init__(self, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self.table[:] = 1.0


@dataclass(frozen=True)
class Composition:
    """A sampler and what it is asked for."""

    sampler: s.Sampler
    prompts: list[torch.Tensor]
    editable: list[torch.Tensor]
    settings: dict[str, Any]

    def generate(self, rows: list[int] | None = None, **more: Any) -> s.SamplerOutput:
        rows = list(range(len(self.prompts))) if rows is None else rows
        return self.sampler.generate(
            [self.prompts[row] for row in rows],
            editable=[self.editable[row] for row in rows],
            request_ids=rows,
            **{**self.settings, "max_new_tokens": [self.settings["max_new_tokens"][row] for row in rows]},
            **more,
        )


@st.composite
def compositions(draw: st.DrawFn) -> Composition | str:
    """A composition, or why its parts refuse each other."""
    model_class = draw(st.sampled_from([TableModel, SpikeModel, MaskLover, Ended, Flat]))
    model = model_class(draw(st.integers(0, 999)), vocab=MASK + 1, eos=EOS)
    remask = draw(st.one_of(st.none(), st.none(), *REMASK.values()))
    policy = remask.policy if remask is not None and draw(st.booleans()) else draw(st.one_of(list(POLICIES.values())))
    length = draw(st.one_of(st.none(), st.none(), st.none(), *LENGTHS.values()))
    verify = draw(st.one_of(st.none(), *VERIFY.values()))
    stopping = draw(st.lists(st.one_of(list(STOPPING.values())), max_size=2))
    kind = draw(st.sampled_from([s.LLaDASampler, s.DreamSampler]))
    try:
        joint = isinstance(remask, s.Policy)
        chosen = None if joint else policy
        sampler = kind(model, policy=chosen, remask=remask, stopping=stopping, length=length, verify=verify)
    except InvalidArgumentError as error:
        return str(error)
    rows = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    lengths = torch.randint(0, 7, (rows,), generator=generator).tolist()
    prompts = [torch.randint(MASK + 1, (n,), generator=generator) for n in lengths]  # given mask tokens among them
    editable = [torch.rand(n, generator=generator) < 0.3 for n in lengths]
    settings = {
        "max_new_tokens": torch.randint(0, 11, (rows,), generator=generator).tolist(),
        "block_length": draw(st.sampled_from([None, 1, 4, 6, 32])),
        "temperature": draw(st.sampled_from([0.0, 0.7, 1.0])),
        "top_p": draw(st.sampled_from([1.0, 0.9])),
        "seed": draw(st.integers(0, 2**40)),
    }
    return Composition(sampler, prompts, editable, settings)
