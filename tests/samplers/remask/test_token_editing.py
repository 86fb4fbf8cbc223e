"""Token editing against a plain loop, and that it ends whatever the model wants edited."""

import pytest
import torch
from fakes import SpikeModel, TableModel
from plain_rows import PlainRow, agree, best, cases

from dlm_kernels import InvalidArgumentError
from dlm_samplers import AncestralUnmask, EndOfText, FixedQuota, LLaDASampler, Threshold, TokenEditing


def edited(model, prompt, new, block, tau, tau_edit, max_post_steps):
    """Joint threshold decoding of one row: masks above tau, edits above tau_edit, a bounded number of looks at a full block."""
    row, edits = PlainRow(model, prompt, new, block), 0
    while row.masked():
        begin, end = row.next_block()
        post_steps = 0
        while True:
            masked = row.masked(begin, end)
            if not masked:
                post_steps += 1
                if post_steps > max_post_steps:
                    break
            row.forward()
            chosen = [i for i in masked if row.confidence[i] > tau] or best(masked, row.confidence, 1)
            changed = [
                i
                for i in range(begin, end)
                if i not in masked and row.proposal[i] != row.canvas[i] and row.confidence[i] > tau_edit
            ]
            row.commit(chosen + changed)
            edits += len(changed)
            if not masked and not changed:
                break
    return row, edits


@pytest.mark.parametrize(
    ("tau", "tau_edit", "max_post_steps", "block"),
    [(0.7, 0.5, 16, 8), (0.5, 0.0, 3, 6), (0.3, 0.3, 0, None), (0.9, 0.9, 2, 5)],
)
def test_editing_is_the_plain_loop(tau, tau_edit, max_post_steps, block):
    edits = 0
    for model, prompts, budgets in cases(25, seed=block or 0, longest=16):
        sampler = LLaDASampler(model, policy=Threshold(tau, strict=True), remask=TokenEditing(tau_edit, max_post_steps))
        out = sampler.generate(prompts, max_new_tokens=budgets, block_length=block)
        rows = [
            edited(model, p.tolist(), b, block, tau, tau_edit, max_post_steps)
            for p, b in zip(prompts, budgets, strict=True)
        ]
        agree(out, prompts, budgets, [row for row, _ in rows])
        edits += sum(number for _, number in rows)
    assert edits > 0, "the cases edit something"


class Flipping(TableModel):
    """Certain everywhere, each time the canvas differs of something else."""

    def __init__(self, seed):
        super().__init__(seed, low=30.0, high=60.0)


@pytest.mark.parametrize(
    "policy", [Threshold(0.9), FixedQuota(), FixedQuota(tokens_per_step=3), AncestralUnmask()], ids=str
)
def test_a_model_that_flips_on_every_step_ends_by_the_bound(policy):
    worst = 0
    for seed in range(15):
        model = Flipping(seed)
        out = LLaDASampler(model, policy=policy, remask=TokenEditing(0.0, max_post_steps=4)).generate(
            [[1, 2], [3]], max_new_tokens=[16, 9], block_length=8
        )
        assert out.finished.all()
        assert (out.sequences[0] != model.mask).all()
        assert (out.sequences[1, :10] != model.mask).all()
        assert (out.nfe <= torch.tensor([16 + 2 * 4, 9 + 2 * 4])).all()
        worst = max(worst, int(out.nfe[0]))
    if policy == FixedQuota():
        assert worst == 16 + 2 * 4, "held rows get their forwards though the policy foresees no commit"


def test_only_the_current_block_is_edited():
    model = Flipping(3)
    out = LLaDASampler(model, policy=Threshold(0.5), remask=TokenEditing(0.0, max_post_steps=3)).generate(
        [[1, 2, 3]], max_new_tokens=12, block_length=4, return_history=True
    )
    changes = [(a != b)[0].nonzero()[:, 0] - 3 for a, b in zip(out.history, out.history[1:], strict=False)]
    blocks = [set((where // 4).tolist()) for where in changes if len(where)]
    assert all(len(touched) == 1 for touched in blocks)
    order = [touched.pop() for touched in blocks]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}


def test_a_streamer_is_given_the_tokens_after_their_last_edit():
    class Recorder:
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, value):
            self.pieces.append(value)

        def end(self):
            self.ended = True

    for seed in range(10):
        recorder = Recorder()
        out = LLaDASampler(Flipping(seed), policy=Threshold(0.9), remask=TokenEditing(0.2, 2)).generate(
            torch.zeros(1, 3, dtype=torch.long), max_new_tokens=11, block_length=4, streamer=recorder
        )
        assert torch.equal(torch.cat(recorder.pieces, dim=1), out.sequences)
        assert len(recorder.pieces) == 4, "the prompt and each block once it is left"
        assert recorder.ended


def test_bad_parameters_and_compositions_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"tau_edit must be in \[0, 1\], got 1.5"):
        TokenEditing(1.5)
    with pytest.raises(InvalidArgumentError, match="max_post_steps must be an int >= 0, got -1"):
        TokenEditing(max_post_steps=-1)
    with pytest.raises(InvalidArgumentError, match="EndOfText needs final tokens"):
        LLaDASampler(SpikeModel(1, eos=3), remask=TokenEditing(), stopping=[EndOfText()])
