"""`accelerate` on diffusers' LLaDA2Pipeline, against the pipeline itself on a model that reads its masks as block-causal."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install 'dlm-kernels[hf]')")
pytest.importorskip("transformers", reason="transformers is not installed (pip install 'dlm-kernels[hf]')")

from diffusers import BlockRefinementScheduler, DiffusionPipeline, DiscreteDDIMScheduler, LLaDA2Pipeline
from published.llada2 import LLaDA2MoeModelLM, StrictLLaDA2
from published.parts import seeded

from dlm_benches.architectures import LLaDA2StyleConfig, LLaDA2StyleModel, LLaDAStyleConfig, LLaDAStyleModel
from dlm_kernels import InvalidArgumentError, dispatch
from dlm_samplers import BlockCache, EntropyBound, ModelMismatchError, PrefixCache, Threshold, accelerate, restore
from dlm_samplers.integrations import versions

V, MASK, EOS, BLOCK = 41, 40, 3, 8
SHAPE = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.35, "eos_token_id": EOS}
TRAP = "LLaDA2Pipeline passes a 2D attention mask"


def build(seed=0, eos_scale=2.0, **config):
    torch.manual_seed(seed)
    model = LLaDA2StyleModel(LLaDA2StyleConfig(**SHAPE, block_length=BLOCK, tie_word_embeddings=False, **config)).eval()
    with torch.no_grad():
        model.lm_head.weight[EOS] *= eos_scale
    return model


class Blocks(torch.nn.Module):
    """What the pipeline's call ought to mean: block-causal attention, and the mask token never likely."""

    def __init__(self, model):
        super().__init__()
        self.model, self.forwards, self.columns = model, 0, 0
        self.device = torch.device("cpu")  # the pipeline asks

    def forward(self, tokens, attention_mask, position_ids):
        self.forwards, self.columns = self.forwards + 1, self.columns + tokens.numel()
        block = torch.arange(tokens.shape[1]) // BLOCK
        mask = (block[:, None] >= block).expand(len(tokens), 1, -1, -1)
        logits = self.model(tokens, mask, position_ids=position_ids).logits
        logits[..., MASK] = -1e9
        return SimpleNamespace(logits=logits)


class Tokenizer:
    """Words are numbers."""

    eos_token_id = EOS
    mask_token_id = MASK
    chat_template = None

    def __call__(self, prompt, return_tensors, padding):
        rows = [[int(word) for word in text.split()] for text in ([prompt] if isinstance(prompt, str) else prompt)]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(width) >= width - torch.tensor([[len(r)] for r in rows])).long(),
        }

    def batch_decode(self, sequences, skip_special_tokens):
        kept = [[token for token in row.tolist() if token != EOS or not skip_special_tokens] for row in sequences]
        return [" ".join(map(str, row)) for row in kept]


def pipeline(model, tokenizer=None, **scheduler):
    pipe = LLaDA2Pipeline(model, BlockRefinementScheduler(block_length=BLOCK, **scheduler), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text(row):
    row = row.tolist()
    return row[: row.index(EOS) + 1] if EOS in row else row


def accelerated(pipe, **parts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return accelerate(pipe, **parts)


SETTINGS = [
    {},  # the pipeline's defaults: threshold 0.7, editing at 0.5
    {"threshold": 0.3, "editing_threshold": None},
    {"threshold": 2.0, "editing_threshold": None, "num_inference_steps": 3},
    {"threshold": 0.3, "editing_threshold": 0.1, "max_post_steps": 3, "num_inference_steps": 4},
    {"threshold": 0.5, "editing_threshold": 0.2, "max_post_steps": 0},
    {"threshold": 0.5, "editing_threshold": 0.0, "minimal_topk": 4},
    {"threshold": 0.3, "editing_threshold": 0.2, "eos_early_stop": False},
    {"temperature": 1.0, "sampling_method": "greedy", "editing_threshold": None, "top_k": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_text_is_the_pipelines_on_a_model_that_reads_its_masks(settings):
    """Prompts that end within a block and generated regions that end with one, where nothing is hidden."""
    edits = ended = 0
    for seed in range(6):
        model = build(seed)
        width = 1 + seed % 11
        call = {
            "input_ids": torch.randint(4, MASK, (1, width)),
            "gen_length": -(-(width + 22) // BLOCK) * BLOCK - width,
            "mask_token_id": MASK,
            "eos_token_id": EOS,
            "output_type": "seq",
        } | settings
        right = Blocks(model)
        expected = pipeline(right)(**call).sequences
        columns = Counter(model)
        with accelerated(pipeline(model)) as pipe, columns:
            got = pipe(**call).sequences
        assert got.shape == expected.shape
        if settings.get("eos_early_stop", True):
            assert text(got[0]) == text(expected[0])
            ended += EOS in got[0]
        else:
            assert torch.equal(got, expected)
        assert columns.forwards <= right.forwards
        assert columns.columns <= right.columns
        if settings.get("editing_threshold", 0.5):
            off = pipeline(right)(**call | {"editing_threshold": None}).sequences
            edits += not torch.equal(off, expected)
    if settings.get("eos_early_stop", True):
        assert ended > 1
    if settings.get("editing_threshold", 0.5):
        assert edits, "nothing is edited, so the test shows nothing"


class Counter:
    """Forwards of a model's layers and the columns they compute, while it lasts."""

    def __init__(self, model):
        self.model, self.forwards, self.columns = model, 0, 0

    def __enter__(self):
        def count(_, arguments):
            self.forwards, self.columns = self.forwards + 1, self.columns + arguments[0].numel()

        self.hook = self.model.model.embed_tokens.register_forward_pre_hook(count)
        return self

    def __exit__(self, *_):
        self.hook.remove()


def test_no_forward_is_wasted_and_finished_blocks_are_kept():
    model = build(eos_scale=0.0)
    call = {"input_ids": torch.arange(16)[None] + 5, "gen_length": 64, "mask_token_id": MASK, "output_type": "seq"}
    call |= {"threshold": 0.3, "editing_threshold": None}
    right = Blocks(model)
    expected = pipeline(right)(**call).sequences
    counter = Counter(model)
    with accelerated(pipeline(model)) as pipe, counter:
        assert torch.equal(pipe(**call).sequences, expected)
    blocks = 64 // BLOCK
    assert counter.forwards == right.forwards - sum_of_idle_forwards(right, call)
    assert counter.columns == counter.forwards * BLOCK + 16 + (blocks - 1) * BLOCK
    assert right.columns > 3 * counter.columns


def sum_of_idle_forwards(right, call):
    idle = 0

    def watch(pipe, step, timestep, tensors):
        nonlocal idle
        idle += not bool(tensors["active_block"].any())
        return {}

    pipeline(right)(**call, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["active_block"])
    return idle


@pytest.mark.parametrize("settings", [{}, {"editing_threshold": None}, {"temperature": 0.8}], ids=str)
def test_a_row_of_a_batch_is_what_it_is_alone(settings):
    model = build(3)
    rows = [torch.randint(4, MASK, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 9, 1, 12)]
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.int64), row]) for row in rows])
    call = {"gen_length": 21, "mask_token_id": MASK, "eos_token_id": EOS, "output_type": "seq", **settings}
    mask = torch.arange(width) >= width - torch.tensor([[len(row)] for row in rows])
    with accelerated(pipeline(model)) as pipe:
        torch.manual_seed(1)
        together = pipe(input_ids=ids, attention_mask=mask.long(), **call).sequences
        for number, row in enumerate(rows):
            torch.manual_seed(1)
            alone = pipe(input_ids=row[None], **call).sequences
            if number == 0 or "temperature" not in settings:  # noise is keyed by the row's place
                assert torch.equal(alone[0], together[number])


def test_texts_prompts_and_return_values_are_the_pipelines():
    model = build(2)
    right, ours = pipeline(Blocks(model), Tokenizer()), pipeline(model, Tokenizer())
    call = {"gen_length": 24 - 4, "threshold": 0.5, "editing_threshold": None}
    with accelerated(ours):
        assert isinstance(ours, LLaDA2Pipeline)
        for prompt in ("7 8 9 10", ["7 8 9 10", "11 12 13 14"]):
            expected, got = right(prompt, **call), ours(prompt, **call)
            assert type(got) is type(expected)
            assert got.texts == expected.texts
            tuples = ours(prompt=prompt, return_dict=False, **call)
            assert tuples[1] == expected.texts
            assert ours.num_timesteps == right.num_timesteps
        with pytest.raises(ValueError, match="Provide either `prompt` or `messages`"):
            ours("7", messages=[{}])
        with pytest.raises(ValueError, match="`gen_length` must be > 0"):
            ours("7", gen_length=0)
        with pytest.raises(TypeError, match="speed"):
            ours("7", speed=3)


@pytest.mark.parametrize("editing", [None, 0.2])
def test_a_callback_sees_the_steps_of_the_pipeline(editing):
    model = build(4, eos_scale=0.0)
    call = {"input_ids": torch.tensor([[7, 8, 9]]), "gen_length": 21, "mask_token_id": MASK, "output_type": "seq"}
    call |= {"threshold": 0.4, "editing_threshold": editing, "callback_on_step_end_tensor_inputs": NAMES}

    def record(pipe):
        steps = []

        def callback(given, step, timestep, tensors):
            assert given is pipe
            steps.append((timestep, {name: tensor.clone() for name, tensor in tensors.items()}))
            return {}

        pipe(callback_on_step_end=callback, **call)
        return steps

    expected = record(pipeline(Blocks(model)))
    with accelerated(pipeline(model)) as pipe:
        got = record(pipe)
    if editing is None:
        expected = [step for step in expected if step[1]["active_block"].any()]  # the others change nothing
    assert len(got) == len(expected)
    for (timestep, tensors), (wanted, theirs) in zip(got, expected, strict=True):
        assert timestep == wanted
        for name in ("block_x", "active_block", "transfer_index", "editing_transfer_index"):
            assert torch.equal(tensors[name], theirs[name]), name
        at = theirs["active_block"]
        assert torch.equal(tensors["sampled_tokens"][at], theirs["sampled_tokens"][at])
        torch.testing.assert_close(tensors["sampled_probs"][at], theirs["sampled_probs"][at])


NAMES = LLaDA2Pipeline._callback_tensor_inputs


def test_a_callback_may_write():
    model = build(eos_scale=0.0)

    def sevens(pipe, step, timestep, tensors):
        tensors["block_x"][:, 3:] = torch.where(tensors["block_x"][:, 3:] == MASK, MASK, 7)
        return tensors

    call = {"input_ids": torch.tensor([[7, 8, 9]]), "gen_length": 13, "mask_token_id": MASK, "output_type": "seq"}
    with accelerated(pipeline(model)) as pipe:
        out = pipe(callback_on_step_end=sevens, **call).sequences
        assert (out == 7).all()
        with pytest.raises(InvalidArgumentError, match="callback_on_step_end needs a single row"):
            pipe(callback_on_step_end=sevens, **call | {"input_ids": torch.tensor([[7], [8]])})


def test_drawn_tokens_come_from_the_generator():
    model = build(eos_scale=0.0)
    call = {"input_ids": torch.tensor([[7, 8, 9]]), "gen_length": 21, "mask_token_id": MASK, "output_type": "seq"}
    call |= {"temperature": 1.0, "top_k": 9, "top_p": 0.9}
    with accelerated(pipeline(model)) as pipe:
        one, same, other = (pipe(generator=torch.Generator().manual_seed(seed), **call).sequences for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_trap_is_reported_once_and_only_where_it_is():
    with pytest.warns(UserWarning, match=f"{TRAP}.* reads as bidirectional attention"):
        layer = accelerate(pipeline(build()))
    layer.restore()

    class Causal(LLaDA2StyleModel):
        def forward(self, tokens, attention_mask, **kwargs):
            if attention_mask.ndim == 2:
                attention_mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()[None, None]
            return super().forward(tokens, attention_mask, **kwargs)

    model = build()
    model.__class__ = Causal
    with pytest.warns(UserWarning, match=f"{TRAP}.* reads as causal attention"):
        accelerate(pipeline(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with accelerate(pipeline(Right(build()))) as pipe:
            pipe(input_ids=torch.tensor([[7, 8]]), gen_length=6, mask_token_id=MASK)


class Right(Blocks):
    """Block-causal under a 2D mask too."""

    def forward(self, tokens, attention_mask, position_ids):
        if attention_mask.ndim == 4:
            return self.model(tokens, attention_mask, position_ids=position_ids)
        return super().forward(tokens, attention_mask, position_ids)


class Additive(torch.nn.Module):
    """Adds its mask, as LLaDA2's released code does, and is of a class that no cache is known to go with."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.device = model, torch.device("cpu")

    def forward(self, tokens, attention_mask, position_ids):
        if attention_mask.ndim == 4 and not attention_mask.is_floating_point():
            raise RuntimeError("expected a floating point mask")
        return self.inner(tokens, attention_mask, position_ids=position_ids)


def test_a_model_that_adds_its_mask_goes_without_a_cache_and_is_told_so_once(monkeypatch):
    model = build(1)
    call = {"input_ids": torch.tensor([[7, 8, 9]]), "gen_length": 21, "mask_token_id": MASK, "output_type": "seq"}
    with accelerated(pipeline(model)) as pipe:
        expected = pipe(**call).sequences
    monkeypatch.setattr(dispatch, "_ANNOUNCED", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with accelerate(pipeline(Additive(model))) as pipe:
                assert torch.equal(pipe(**call).sequences, expected)
    said = [str(one.message) for one in caught if one.category is RuntimeWarning]
    assert len(said) == 1
    assert said[0].startswith("Additive: finished blocks are computed anew in every forward")
    assert "BlockCache scores hidden states" in said[0]
    with pytest.raises(InvalidArgumentError, match="BlockCache scores hidden states"):
        accelerated(pipeline(Additive(model)), cache=BlockCache())


@pytest.mark.parametrize(
    ("kind", "warning"),
    [(LLaDA2MoeModelLM, "reads as bidirectional attention"), (StrictLLaDA2, "refuses .LLaDA2.0 only")],
)
def test_published_code_gets_its_cache(kind, warning):
    """By default; the text is what it is without one."""
    model = seeded(lambda: kind(vocab_size=V, block_length=BLOCK), 2)
    call = {"input_ids": torch.randint(MASK, (3, 5)), "gen_length": 21, "mask_token_id": MASK, "output_type": "seq"}
    pipe, columns = pipeline(model), []
    with pytest.warns(UserWarning, match=f"{TRAP}.* {warning}"):
        accelerate(pipe)
    model.model.register_forward_pre_hook(lambda module, inputs: columns.append(inputs[0].numel()))
    cached, work = pipe(**call).sequences, sum(columns)
    restore(pipe)
    with accelerated(pipe, cache=None):
        columns.clear()
        plain = pipe(**call).sequences
    assert torch.equal(cached, plain)
    assert work < sum(columns) / 2
    with accelerated(pipe, cache=BlockCache()):
        assert torch.equal(pipe(**call).sequences, plain)


def test_the_pipeline_is_what_it_was(tmp_path):
    pipe = pipeline(build())
    call = {"input_ids": torch.tensor([[7, 8, 9]]), "gen_length": 5, "mask_token_id": MASK, "output_type": "seq"}
    original = pipe(**call).sequences
    before, kind = dict(vars(pipe)), type(pipe)
    with accelerated(pipe):
        inside = type(pipe)
        assert inside is not kind
        assert (inside.__name__, inside.__module__) == (kind.__name__, kind.__module__)
        pipe(**call)
        twin = copy.copy(pipe)
        with accelerated(pipe, policy=Threshold(0.3)):
            pass
        assert type(pipe) is inside
    assert type(pipe) is kind
    assert dict(vars(pipe)) == before
    assert torch.equal(pipe(**call).sequences, original)
    restore(twin)
    assert type(twin) is kind

    first, second = accelerated(pipe), accelerated(pipe, policy=Threshold(0.3))
    first.restore()
    assert type(pipe) is not kind
    second.restore()
    assert type(pipe) is kind
    with pytest.raises(RuntimeError), accelerated(pipe):
        raise RuntimeError
    accelerated(pipe)
    accelerated(pipe)
    restore(pipe)
    restore(pipe)
    assert (type(pipe), dict(vars(pipe))) == (kind, before)

    with accelerated(pipe):
        pipe.register_modules(model=None)
        pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, model=None, tokenizer=None)
    assert type(loaded) is kind


def test_other_parts():
    model = build(eos_scale=0.0)
    call = {"input_ids": torch.tensor([[7, 8, 9]]), "gen_length": 21, "mask_token_id": MASK, "output_type": "seq"}
    counts = []
    for parts in ({}, {"policy": EntropyBound(50.0)}):
        counter = Counter(model)
        with accelerated(pipeline(model), **parts) as pipe, counter:
            assert not (pipe(editing_threshold=None, threshold=1.0, **call).sequences == MASK).any()
        counts.append(counter.forwards)
    assert counts == [21, 3]  # a block a forward


def test_what_cannot_be_accelerated_is_left_alone(monkeypatch):
    def untouched(pipe, error, message, **parts):
        before, kind = dict(vars(pipe)), type(pipe)
        with pytest.raises(error, match=message):
            accelerated(pipe, **parts)
        assert (dict(vars(pipe)), type(pipe)) == (before, kind)

    untouched(pipeline(build()), InvalidArgumentError, "use BlockCache, which is exact here", cache=PrefixCache())
    odd = pipeline(build())
    odd.scheduler = DiscreteDDIMScheduler()
    untouched(odd, InvalidArgumentError, "scheduler must be a BlockRefinementScheduler")

    class Deaf(LLaDAStyleModel):
        """Whatever the mask says, everything is seen."""

        def forward(self, tokens, attention_mask=None, **kwargs):
            return super().forward(tokens, None, **kwargs)

    deaf = Deaf(LLaDAStyleConfig(**SHAPE)).eval()
    untouched(pipeline(deaf), ModelMismatchError, "not block-causal: with a bool mask bidirectional")

    class Other(DiffusionPipeline):
        pass

    untouched(Other(), InvalidArgumentError, "Other is not LLaDA2Pipeline")
    tokenizer = Tokenizer()
    tokenizer.mask_token_id = None
    bare = pipeline(build(), tokenizer)
    bare.model.config.mask_token_id = None
    with accelerated(bare), pytest.raises(InvalidArgumentError, match="the tokenizer has no mask token"):
        bare("7 8 9")
    with accelerated(bare, mask_id=MASK):
        bare("7 8 9", gen_length=5)
    real = versions.metadata.version
    monkeypatch.setattr(versions.metadata, "version", lambda name: "0.30.0" if name == "diffusers" else real(name))
    untouched(pipeline(build()), versions.UnsupportedVersionError, r"diffusers 0.30.0 is too old: this needs .*>=0.42")
