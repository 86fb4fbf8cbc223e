"""The trainer and its parts: resuming repeats the same steps, evaluation samplers, tokenizer, bundled weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dlm_benches.tiny import evaluate, load, recipes, train, vocab
from dlm_benches.tiny.data_text import ALPHABET, TextTokenizer, corpus, held_out_prompts, normalise, paragraphs
from dlm_benches.tiny.optim import orthogonalise
from dlm_benches.tiny.tasks import TASKS


@pytest.fixture(scope="module")
def tiny_recipe():
    """The real recipe with a batch of four: two steps take a moment."""
    with pytest.MonkeyPatch.context() as patch:
        small = {
            name: recipe.__class__(**{**recipe.to_dict(), "batch": 4, "warmup": 2})
            for name, recipe in recipes.RECIPES.items()
        }
        patch.setattr(train, "RECIPES", small)
        patch.setattr(evaluate, "SETTINGS", {"fixed_8": evaluate.top_k(8)})
        yield


@pytest.mark.parametrize("name", ["reasoning", "reasoning-ar"])
def test_resuming_gives_the_same_weights(tiny_recipe, name, tmp_path):
    train.train(name, tmp_path / "whole", steps=4, final_n=1)
    train.train(name, tmp_path / "halves", steps=4, stop_step=2, final_n=1)
    train.train(name, tmp_path / "halves", steps=4, resume=True, final_n=1)
    whole = load_file(tmp_path / "whole" / "state.safetensors")
    halves = load_file(tmp_path / "halves" / "state.safetensors")
    assert whole.keys() == halves.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(tensor, halves[key], msg=key)
    written = json.loads((tmp_path / "halves" / "recipe.json").read_text())
    assert written["steps_done"] == 4
    assert set(written["held_out"]) == ({"greedy" if name == "reasoning-ar" else "fixed_8"})
    assert not list(tmp_path.glob("*/*.partial"))
    assert load.load_folder(tmp_path / "halves").config == train.config_for(recipes.RECIPES[name])


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name: expected one of .*'reasoning'"):
        train.train("poetry", tmp_path)
    with pytest.raises(ValueError, match=r"mix: \['chess'\]"):
        train.train("reasoning", tmp_path, mix={"chess": 1.0})
    with pytest.raises(load.CheckpointError, match="name: expected one of"):
        load.load("../reasoning")


def test_orthogonalise_levels_the_singular_values():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 16, 64)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_selection_rules():
    confidence = torch.tensor([[0.2, 0.95, -1.0, 0.9], [-1.0, 0.1, -1.0, -1.0], [0.99, 0.99, 0.98, -1.0]])
    assert evaluate.top_k(1)(confidence)[:2].tolist() == [[False, True, False, False], [False, True, False, False]]
    assert evaluate.top_k(8)(confidence).tolist() == (confidence >= 0).tolist()
    assert evaluate.threshold(0.9)(confidence)[0].tolist() == [False, True, False, True]
    # (n + 1)(1 - c_n): 0.10, 0.30 for row 0; 0.02, 0.03, 0.08 for row 2
    assert evaluate.factor(0.2)(confidence)[0].tolist() == [False, True, False, False]
    assert evaluate.factor(0.05)(confidence)[2].tolist() == [True, True, False, False]
    assert evaluate.factor(0.01)(confidence).sum(dim=1).tolist() == [1, 1, 1]


def test_wilson_interval():
    low, high = evaluate.wilson(95, 100)
    assert (round(low, 4), round(high, 4)) == (0.8882, 0.9785)
    assert evaluate.wilson(0, 10)[0] == 0.0
    assert evaluate.wilson(10, 10)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="n: "):
        evaluate.wilson(0, 0)


def test_tokenizer_round_trip_and_order_of_merges():
    tokenizer = TextTokenizer.train(["the then the them"] * 3, vocab_size=len(ALPHABET) + 3 + 4)
    assert tokenizer.merges[0] == ("h", "e")  # ties: alphabetically first
    assert (tokenizer.eos, tokenizer.pad, tokenizer.mask) == tuple(range(len(ALPHABET) + 4, len(ALPHABET) + 7))
    text = "Then — the théory of “them”:\n x[0] = 1"
    assert tokenizer.decode(tokenizer.encode(text)) == normalise(text) == 'Then - the theory of "them":\n x[0] = 1'
    assert tokenizer.decode([tokenizer.mask, tokenizer.pad, tokenizer.eos, 0]) == "_"
    with pytest.raises(ValueError, match="merges: "):
        TextTokenizer((("ab", "c"),))
    with pytest.raises(ValueError, match="ids: "):
        tokenizer.decode([-1])


def test_corpus_is_prose_and_no_paragraph_is_in_both_splits():
    split = corpus()
    lines = {name: {line for text in texts for line in text.splitlines()} for name, texts in split.items()}
    assert len(lines["train"]) > 1000
    assert len(lines["test"]) > 100
    assert not lines["train"] & lines["test"]
    assert paragraphs("Title\n=====\n\nA sentence that was wrapped\nafter four or five words.\n\n   x = f(1)\n") == [
        "A sentence that was wrapped after four or five words."
    ]


SAMPLE = 60
STANDARD_ERRORS = 4


@pytest.mark.parametrize(("name", "recorded"), [("reasoning", "threshold_0.9"), ("reasoning-ar", "greedy")])
def test_bundled_weights_answer_as_recorded(name, recorded):
    """A sample may fall short of the score in the recipe by four standard errors, and no further."""
    scores = evaluate.evaluate(load.load(name), SAMPLE, evaluate.threshold(0.9))
    for task, expected in load.read_recipe(name)["held_out"][recorded].items():
        p = expected["low"]
        floor = p - STANDARD_ERRORS * (p * (1 - p) / SAMPLE) ** 0.5
        assert scores[task].accuracy >= floor, (task, scores[task])
    if name == "reasoning":
        assert all(score.forwards < 16 for score in scores.values())


def test_bundled_recipes_record_every_task():
    for name in ("reasoning", "reasoning-ar"):
        for scores in load.read_recipe(name)["held_out"].values():
            assert set(scores) == set(TASKS)


def test_bundled_text_model_fills_a_blank():
    model = load.load("text")
    tokenizer = TextTokenizer.read(load.MODELS / "text" / "tokenizer.json")
    assert model.config.mask_token_id == tokenizer.mask
    assert load.read_recipe("text")["held_out"]["bound_bits_per_byte"] < 4.0
    prompt = held_out_prompts(tokenizer, 1, 64)[0]
    ids = torch.tensor([[*prompt[:32], tokenizer.mask, *prompt[33:]]])
    rank = (model(ids).logits[0, 32] > model(ids).logits[0, 32, prompt[32]]).sum()
    assert rank < vocab.SIZE
