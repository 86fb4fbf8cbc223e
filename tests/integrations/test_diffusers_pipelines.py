"""diffusers' own pipelines with a fused scheduler in place of the original one: equal tokens at every step."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install 'dlm-kernels[hf]')")
pytest.importorskip("transformers", reason="transformers is not installed (pip install 'dlm-kernels[hf]')")

import transformers
from diffusers import DiffusionGemmaPipeline, DiffusionPipeline, LLaDA2Pipeline
from keyed_originals import KeyedBlockRefinement, KeyedDiscreteDDIM, KeyedEntropyBound

from dlm_benches.integrations.diffusion_gemma import random_model
from dlm_samplers.integrations.diffusers import (
    FusedBlockRefinementScheduler,
    FusedDiscreteDDIMScheduler,
    FusedEntropyBoundScheduler,
)

VOCABULARY, MASK, EOS = 67, 66, 1
SEEDS = [range(12), pytest.param(range(12, 100), marks=pytest.mark.slow)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class TinyLLaDA2(torch.nn.Module):
    """Stand-in for LLaDA2's remote code with the pipeline's contract; one attention layer, random weights, sure of itself."""

    device = torch.device("cpu")  # the pipeline asks

    def __init__(self, width=16, sharpness=4.0):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, width)
        self.place = torch.nn.Embedding(128, width)
        self.query, self.head = torch.nn.Linear(width, width), torch.nn.Linear(width, VOCABULARY)
        self.sharpness = sharpness

    def forward(self, tokens, attention_mask, position_ids):
        x = self.embedding(tokens) + self.place(position_ids)
        weights = (self.query(x) @ x.mT).masked_fill(attention_mask[:, None] == 0, -1e9).softmax(-1)
        return SimpleNamespace(logits=self.sharpness * self.head(x + weights @ x))


def record(pipeline, **call):
    """(callback's tensors of every step, the result's sequences)."""
    steps = []

    def callback(_, step, timestep, tensors):
        steps.append((step, timestep, {name: tensor.clone() for name, tensor in tensors.items()}))
        return {}

    result = pipeline(callback_on_step_end=callback, output_type="seq", **call)
    return steps, result.sequences


def assert_same_run(pipeline, fused, call, seed):
    """Runs the pipeline as it is and with the one line changed; returns the number of steps."""
    original = pipeline.scheduler
    expected, sequences = record(pipeline, generator=seeded(seed), **call)
    pipeline.scheduler = fused.from_config(pipeline.scheduler.config)
    got, ours = record(pipeline, generator=seeded(seed), **call)
    pipeline.scheduler = original
    assert len(got) == len(expected) > 0
    for (*at, tensors), (*where, wanted) in zip(got, expected, strict=True):
        assert at == where
        for name, tensor in wanted.items():
            if name in ("sampled_probs", "logits"):
                torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=1e-9)
            else:
                assert torch.equal(tensors[name], tensor), (at, name)
    assert torch.equal(ours, sequences)
    return len(got)


LLADA2 = [
    {},  # the pipeline's defaults: threshold 0.7, editing at 0.5
    {"threshold": 0.95, "editing_threshold": None},
    {"threshold": 2.0, "editing_threshold": None, "num_inference_steps": 3},
    {"editing_threshold": 0.2, "max_post_steps": 3, "num_inference_steps": 4},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_k": 7, "editing_threshold": None},
    {"temperature": 1.0, "sampling_method": "greedy", "eos_early_stop": False},
]


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("settings", LLADA2, ids=str)
def test_llada2_pipeline(settings, seeds):
    """Prompts of several lengths, padded on the left, that end within a block; 1 to 4 rows."""
    steps = 0
    for seed in seeds:
        torch.manual_seed(seed)
        pipeline = LLaDA2Pipeline(TinyLLaDA2().eval(), KeyedBlockRefinement(block_length=8))
        pipeline.set_progress_bar_config(disable=True)
        rows, width = 1 + seed % 4, (3, 8, 11)[seed % 3]
        given = torch.arange(width) >= torch.randint(width - 1, (rows, 1))
        call = {
            "input_ids": torch.where(given, torch.randint(2, MASK, (rows, width)), 0),
            "attention_mask": given.long(),
            "gen_length": 13,
            "mask_token_id": MASK,
            "eos_token_id": EOS if seed % 2 else None,
            "num_inference_steps": 8,
            "callback_on_step_end_tensor_inputs": LLaDA2Pipeline._callback_tensor_inputs,
        }
        steps += assert_same_run(pipeline, FusedBlockRefinementScheduler, call | settings, seed)
    assert steps >= 3 * len(seeds)


class Processor:
    """Ids in place of text: a left-padded prompt for every row."""

    eos_token_id = EOS

    def __init__(self, rows):
        self.rows = rows

    def apply_chat_template(self, *_, **__):
        given = torch.arange(5) >= torch.arange(self.rows)[:, None]
        ids = torch.randint(2, VOCABULARY, given.shape, generator=seeded(self.rows))
        return {"input_ids": torch.where(given, ids, 0), "attention_mask": given.long()}


@pytest.fixture(scope="module")
def gemma():
    """transformers' DiffusionGemma, 0.4M random parameters, sure of some tokens."""
    if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
        pytest.skip(f"transformers {transformers.__version__} has no DiffusionGemma")
    return random_model(VOCABULARY, 8)


GEMMA = [
    (KeyedBlockRefinement, FusedBlockRefinementScheduler, {"threshold": 0.8}, {}),
    (KeyedBlockRefinement, FusedBlockRefinementScheduler, {"editing_threshold": 0.5}, {"temperature": 0.9}),
    (KeyedEntropyBound, FusedEntropyBoundScheduler, {}, {}),
    (KeyedEntropyBound, FusedEntropyBoundScheduler, {"entropy_bound": 1.5}, {"confidence_threshold": None}),
    (KeyedDiscreteDDIM, FusedDiscreteDDIMScheduler, {}, {"confidence_threshold": None}),
    (KeyedDiscreteDDIM, FusedDiscreteDDIMScheduler, {}, {"temperature": 0.8}),
]


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize(("original", "fused", "config", "settings"), GEMMA)
def test_diffusion_gemma_pipeline(gemma, original, fused, config, settings, seeds):
    for seed in seeds:
        rows = 1 + seed % 4
        pipeline = DiffusionGemmaPipeline(gemma, original(**config), Processor(rows))
        pipeline.set_progress_bar_config(disable=True)
        call = {"prompt": ["x"] * rows, "gen_length": 16, "num_inference_steps": 5, "eos_early_stop": False}
        call["callback_on_step_end_tensor_inputs"] = ["canvas", "logits"]
        steps = assert_same_run(pipeline, fused, call | settings, seed)
        assert steps == 10 if settings.get("confidence_threshold", 0) is None else 2 <= steps <= 10


def test_diffusion_gemma_pipeline_with_corrector(gemma):
    """The fused one first, since the original is given the corrector's draws."""
    fused = FusedDiscreteDDIMScheduler(corrector_steps=2, corrector_k=3)
    original = KeyedDiscreteDDIM.from_config(fused.config)
    corrections, correct = [], fused.step_correct

    def recorded(*arguments, **kwargs):
        corrections.append(correct(*arguments, **kwargs))
        return corrections[-1]

    fused.step_correct = recorded
    runs = []
    for scheduler in (fused, original):
        pipeline = DiffusionGemmaPipeline(gemma, scheduler, Processor(2))
        pipeline.set_progress_bar_config(disable=True)
        call = {"prompt": ["x"] * 2, "gen_length": 16, "num_inference_steps": 10, "confidence_threshold": None}
        runs.append(record(pipeline, generator=seeded(5), eos_early_stop=False, **call))
        original.correct_with([output.sampled_tokens for output in corrections])
    (ours, sequences), (theirs, expected) = runs
    assert len(corrections) == 2 * 2 * 3  # canvases, sweeps, corrected steps
    assert len(ours) == len(theirs) == 2 * 4
    for (_, _, got), (_, _, wanted) in zip(ours, theirs, strict=True):
        assert torch.equal(got["canvas"], wanted["canvas"])
    assert torch.equal(sequences, expected)


@pytest.mark.parametrize(
    "fused", [FusedBlockRefinementScheduler, FusedEntropyBoundScheduler, FusedDiscreteDDIMScheduler]
)
def test_a_saved_pipeline_loads_with_the_fused_scheduler(tmp_path, fused):
    model = TinyLLaDA2()
    pipeline = LLaDA2Pipeline(None, fused(num_inference_steps=5), None)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, model=model, tokenizer=None)
    assert type(loaded) is LLaDA2Pipeline
    assert type(loaded.scheduler) is fused
    assert loaded.scheduler.num_inference_steps == 5
