"""The tiny transformers: padding invariance, cache equality, and errors of the loader."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm_benches.tiny.load import CheckpointError, load_folder
from dlm_benches.tiny.model import TinyAR, TinyConfig, TinyDLM, build

V, EOS, PAD, MASK = 23, 20, 21, 22


def config(**changes):
    return TinyConfig(**{"vocab_size": V, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": PAD,
                         "learned_positions": 40, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "num_key_value_heads": 2, **changes})  # fmt: skip


DLM, AR = None, 1  # the two models: every position sees every other; blocks of one token


def random_model(block_length):
    """Random weights large enough that attention and every residual branch matter."""
    torch.manual_seed(3)
    model = build(config(block_length=block_length))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def dlm():
    return random_model(DLM)


@pytest.fixture(scope="module")
def ar():
    return random_model(AR)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("block_length", [DLM, AR])
def test_a_padded_row_means_the_same_as_alone(block_length, side):
    model = random_model(block_length)
    lengths = [12, 5, 1, 9]
    rows = [torch.randint(0, EOS, (n,)) for n in lengths]
    ids = torch.full((len(rows), 12), PAD)
    mask = torch.zeros(ids.shape, dtype=torch.int64)
    spans = [slice(12 - n, 12) if side == "left" else slice(0, n) for n in lengths]
    for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
        ids[index, span], mask[index, span] = row, 1
    together = model(ids, mask).logits
    assert torch.isfinite(together).all()
    for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
        torch.testing.assert_close(together[index, span], model(row[None]).logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(ids, mask.bool()).logits, together)


def test_a_mask_of_ones_is_no_mask(dlm):
    ids = torch.randint(0, V, (3, 17))
    torch.testing.assert_close(dlm(ids, torch.ones_like(ids)).logits, dlm(ids).logits, atol=1e-5, rtol=1e-5)


def test_hidden_then_head_is_forward(dlm):
    ids = torch.randint(0, V, (3, 17))
    assert dlm.hidden(ids).shape == (3, 17, 32)
    torch.testing.assert_close(dlm.lm_head(dlm.hidden(ids)), dlm(ids).logits)


def test_every_position_sees_both_sides_only_in_the_masked_model(dlm, ar):
    ids = torch.randint(0, EOS, (1, 10))
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % EOS
    assert not torch.allclose(dlm(ids).logits[0, 0], dlm(changed).logits[0, 0], atol=1e-4)
    torch.testing.assert_close(ar(ids).logits[0, :-1], ar(changed).logits[0, :-1])


def test_cached_generation_equals_recomputation(ar):
    prompts = [torch.randint(0, EOS, (n,)).tolist() for n in (3, 11, 1, 7, 20)]
    made = ar.generate(prompts, 20, eos=EOS)
    ends = set()
    for prompt, tokens, nfe in zip(prompts, made.tokens.tolist(), made.nfe.tolist(), strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 20:
            ids.append(int(ar(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == EOS:
                break
        generated = ids[len(prompt) :]
        assert nfe == len(generated)
        assert tokens == generated + [EOS] * (20 - len(generated))
        ends.add(nfe)
    tensor = torch.tensor(prompts[1])[None]
    torch.testing.assert_close(ar.generate(tensor, 20, eos=EOS).tokens[0], made.tokens[1])


def test_rows_leave_the_batch_at_their_own_eos(ar):
    prompts = [[n] for n in range(16)]
    free = ar.generate(prompts, 12, eos=-1)  # never comes up
    some = int(free.tokens[0, 3])  # make what row 0 says at step 3 the EOS
    made = ar.generate(prompts, 12, eos=some)
    for before, after, nfe in zip(free.tokens.tolist(), made.tokens.tolist(), made.nfe.tolist(), strict=True):
        assert after[:nfe] == before[:nfe]
        assert some not in before[: nfe - 1]
        assert after[nfe:] == [some] * (12 - nfe)
    assert made.nfe[0] <= 4


def test_any_mask_and_positions_say_what_the_row_means(dlm):
    """A row in another order, its positions and mask with it, gives the same; what a query may not see does not matter."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, (2, 9), generator=generator)
    visible = torch.rand(2, 1, 9, 9, generator=generator) < 0.6
    visible |= torch.eye(9, dtype=torch.bool)
    places = torch.tensor([[0, 1, 2, 3, 3, 4, 30, 39, 2]]).repeat(2, 1)
    order = torch.randperm(9, generator=generator)
    with torch.no_grad():
        straight = dlm(ids, visible, places).logits
        mixed = dlm(ids[:, order], visible[:, :, order][..., order], places[:, order]).logits
        assert torch.allclose(straight[:, order], mixed, atol=1e-5)
        alone = visible.clone()
        alone[:, :, 4] = torch.arange(9) == 4
        before = dlm(ids, alone, places).logits
        others = torch.where(torch.arange(9) == 4, ids, (ids + 1) % 5)
        assert torch.equal(dlm(others, alone, places).logits[:, 4], before[:, 4])
        assert not torch.equal(dlm(others, alone, places).logits[:, 3], before[:, 3])


def test_nothing_to_generate(ar):
    assert ar.generate([], 4).tokens.shape == (0, 4)
    assert ar.generate([[1, 2]], 0).tokens.shape == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, dtype=torch.int64),), r"input_ids: expected \[B, L\] int64, got \[3\]"),
        ((torch.zeros(1, 3),), "input_ids: .*float32"),
        ((torch.zeros(1, 41, dtype=torch.int64),), "input_ids: 41 positions, the model has 40"),
        ((torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)), r"attention_mask: .*\[1, 4\]"),
        ((torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3)), "attention_mask: .*float32"),
        (
            (torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 1, 3, 3)),
            r"attention_mask: .*\[1, 1, 3, 3\] bool.*float32",
        ),
        ((torch.zeros(2, 3, dtype=torch.int64), torch.ones(1, 1, 3, 3) > 0), r"attention_mask: .*\[2, 1, 3, 3\] bool"),
        ((torch.zeros(1, 3, dtype=torch.int64), None, torch.ones(1, 3)), "position_ids: .*float32"),
        ((torch.zeros(1, 3, dtype=torch.int64), None, torch.tensor([[0, 1, 40]])), "position_ids: expected 0 to 39"),
    ],
)
def test_bad_input_is_named(dlm, arguments, message):
    with pytest.raises(ValueError, match=message):
        dlm(*arguments)


def test_bad_prompts_are_named(ar):
    with pytest.raises(ValueError, match=r"prompts\[1\]: expected 1 to 36 ids"):
        ar.generate([[1], []], 4)
    with pytest.raises(ValueError, match="max_new_tokens: expected 0 or more, got -1"):
        ar.generate([[1]], -1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_size": 30, "num_attention_heads": 4, "head_dim": None},
            "hidden_size: 30 does not divide into 4 heads",
        ),
        ({"mask_token_id": V}, "mask_token_id"),
        ({"eos_token_id": None}, "eos_token_id"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"learned_positions": None}, "learned_positions: expected a positive integer, got None"),
        ({"vocab_size": "23"}, "vocab_size"),
        ({"model_type": "gpt"}, "model_type"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: expected False, got True"),
        ({"block_length": 4}, "block_length: expected None or 1, got 4"),
        ({"norm": "batch"}, "norm: expected 'rms' or 'layer', got 'batch'"),
        ({"activation": "gelu"}, "activation: expected 'swiglu' or 'squared_relu', got 'gelu'"),
        ({"qk_norm": True}, "qk_norm: goes with separate projections"),
    ],
)
def test_impossible_config_is_named(change, message):
    values = {**config().to_dict(), **change}
    with pytest.raises(ValueError, match=message):
        TinyConfig(**values)


@pytest.fixture
def folder(tmp_path, dlm):
    save_file({k: v.half() for k, v in dlm.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config().to_dict()))
    return tmp_path


def test_a_saved_model_comes_back(folder, dlm):
    model = load_folder(folder)
    assert isinstance(model, TinyDLM)
    assert not isinstance(model, TinyAR)
    assert not model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, dlm.state_dict()[name].half().float())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), r"'lm_head.weight' is missing: expected \[23, 32\] float16"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(31).half()}),
            r"'model.norm.weight': expected \[32\] .* got \[31\]",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(32)}), "'model.norm.weight': expected .* got .* float32"),
        (
            lambda t: t.update({"model.norm.weight": torch.full((32,), torch.nan).half()}),
            "'model.norm.weight': .* got NaN",
        ),
        (lambda t: t.update({"more": torch.ones(2).half()}), r"'more': expected no such tensor, got \[2\]"),
    ],
)
def test_a_bad_tensor_is_named(folder, spoil, message):
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_folder(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_what_is_not_safetensors_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: not readable JSON"),
        ("[]", "config.json: expected a JSON object, got list"),
        ("{}", "config.json: missing fields .*'eos_token_id'"),
        (json.dumps({**config().to_dict(), "depth": 3}), r"config.json: unknown fields \['depth'\]"),
        (json.dumps({**config().to_dict(), "num_attention_heads": -1}), "config.json: num_attention_heads"),
    ],
)
def test_a_bad_config_is_named(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_folder(folder)
