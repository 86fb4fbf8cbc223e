"""The generated tasks: scorers accept the given answer and no answer that is off by one symbol; splits are disjoint."""

import numpy as np
import pytest

from dlm_benches.tiny import vocab
from dlm_benches.tiny.data_tasks import REGION, causal_batch, masked_batch
from dlm_benches.tiny.recipes import FIRST_MIX
from dlm_benches.tiny.tasks import TASKS, Sudoku, is_test, sudoku_grids

NAMES = sorted(TASKS)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("name", NAMES)
def test_scorer_accepts_the_answer_and_nothing_one_symbol_away(name, rng):
    task = TASKS[name]
    for item in task.sample(rng, 50):
        assert item.task == name
        assert task.check(item.prompt, item.answer)
        assert not task.check(item.prompt, item.answer[:-1])
        assert not task.check(item.prompt, [*item.answer, item.answer[-1]])
        for place, symbol in enumerate(item.answer):
            wrong = list(item.answer)
            wrong[place] = (symbol + 1 + int(rng.integers(vocab.SIZE - 1))) % vocab.SIZE
            assert not task.check(item.prompt, wrong)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_items_are_in_their_split_and_fit(name, split, rng):
    task = TASKS[name]
    for item in task.sample(rng, 200, split):
        assert len(item.prompt) <= 20
        assert len(item.answer) + 1 <= REGION
        assert len(item.answer) == item.meta["answer_length"]
        if name == "sudoku":
            cells = np.array(item.answer) - vocab.DIGIT_0 - 1
            assert (task.grids[split] == cells).all(axis=1).any()
        else:
            assert is_test(np.array([item.prompt]))[0] == (split == "test")


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("sort", "Sdbcab=", "abbcd"),
        ("reverse", "Rdbca=", "acbd"),
        ("copy", "Cdbca=", "dbca"),
        ("addition", "A123+989=", "2111"),
        ("addition", "A001+009=", "0100"),
        ("replace", "P2xdbca=", "dxca"),
        ("shuffle", "Hdbca=", "dbac"),
        ("sudoku", "U1234341221434321=", "1234341221434321"),
    ],
)
def test_written_examples(name, prompt, answer):
    assert TASKS[name].check(vocab.encode(prompt), vocab.encode(answer))


def test_shuffle_may_not_return_the_line_as_it_was():
    assert not TASKS["shuffle"].check(vocab.encode("Hdbca="), vocab.encode("dbca"))


def test_sudoku_must_keep_its_clues():
    # a valid grid, but not the one with a 1 in the first cell
    assert not TASKS["sudoku"].check(vocab.encode("U1_______________="), vocab.encode("2134431212433421"))
    assert TASKS["sudoku"].check(vocab.encode("U2_______________="), vocab.encode("2143341212344321"))


def test_sudoku_split_holds_out_whole_grids():
    assert sudoku_grids().shape == (288, 16)
    grids = Sudoku().grids
    assert (len(grids["train"]), len(grids["test"])) == (252, 36)
    assert not {tuple(g) for g in grids["train"]} & {tuple(g) for g in grids["test"]}


def test_another_tasks_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt: expected 'S"):
        TASKS["sort"].check(vocab.encode("Rdbca="), vocab.encode("abcd"))


def test_vocabulary_round_trip_and_errors():
    assert vocab.MASK == vocab.SIZE - 1
    assert vocab.decode(vocab.encode(vocab.SYMBOLS), trim=False) == vocab.SYMBOLS
    with pytest.raises(vocab.VocabularyError, match="'!'"):
        vocab.encode("a!")
    with pytest.raises(vocab.VocabularyError, match=str(vocab.SIZE)):
        vocab.decode([vocab.SIZE])


@pytest.mark.parametrize("tight", [0.0, 1.0])
def test_masked_batches_hide_only_the_region(tight, rng):
    batch = masked_batch(rng, 64, FIRST_MIX, tight)
    hidden = batch.inputs == vocab.MASK
    assert hidden.any(dim=1).float().mean() > 0.9
    assert (batch.inputs == batch.targets)[~hidden].all()
    assert ((batch.weights > 0) == hidden).all()
    assert ((batch.targets == vocab.PAD) == ~batch.attention_mask).all()
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        start = targets.index(vocab.EQUALS) + 1
        assert vocab.MASK not in inputs[:start]
        assert vocab.EOS in targets[start:]


def test_causal_batches_ask_for_the_answer_and_one_eos(rng):
    batch = causal_batch(rng, 64, FIRST_MIX)
    for targets, weights in zip(batch.targets.tolist(), batch.weights.tolist(), strict=True):
        asked = [t for t, w in zip(targets, weights, strict=True) if w]
        assert asked[-1] == vocab.EOS
        assert vocab.EOS not in asked[:-1]
        assert targets[weights.index(1.0) - 1] == vocab.EQUALS
