"""Processes that hold parts of an LM head: the same tokens as one that holds it all."""

import math

import pytest
import torch
from tolerances import assert_equal, assert_no_worse

from dlm_kernels import BackendUnavailableError, InvalidArgumentError, TokenScores, score_hidden, score_hidden_parallel
from dlm_kernels.dispatch import backend_status
from kernels.rows import awkward_rows

pytestmark = pytest.mark.skipif(not backend_status("cpu").available, reason=backend_status("cpu").reason or "-")

STATISTICS = TokenScores._fields[1:]
VOCABULARY = 9001
# Where the shards end, per rank: uneven, not at multiples of four, one empty, one of a single row; in any order of the ranks.
SPLITS = {
    2: [[(0, 4501), (4501, 9001)], [(3, 9001), (0, 3)]],
    3: [[(0, 3001), (3001, 3002), (3002, 9001)], [(5000, 9001), (0, 5000), (9001, 9001)]],
}
CASES = {
    "greedy": {},
    "noise": {"temperature": 0.9},
    "noise_sampling_confidence": {"temperature": 2.0, "confidence": "sampling", "suppress_ids": [0, 4500, 9000]},
    "top_k": {"temperature": 1.0, "top_k": 20, "confidence": "sampling"},
    "large_top_k": {"temperature": 1.0, "top_k": 3000},
    "top_p": {"temperature": 1.0, "top_p": 0.9, "confidence": "sampling"},
    "both": {"temperature": 0.7, "top_k": 2500, "top_p": 0.95},
    "both_top_p_first": {"temperature": 1.5, "top_k": 30, "top_p": 0.5, "filter_order": "top_p_first"},
    "filters_without_noise": {"top_k": 5, "top_p": 0.99, "confidence": "sampling"},
}


def problems():
    """{name: (hidden, weight, bias, options)}: random heads, and rows of every kind through a head of one dimension."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(VOCABULARY, 24, generator=generator) / 5
        hidden = torch.randn(18, 24, generator=generator) * torch.linspace(0.3, 5, 18)[:, None]
        hidden[:6] += weight[[2, 4500, 4501, 3001, 9000, 0]] * 40
        bias = torch.randn(VOCABULARY, generator=generator)
        for case, options in CASES.items():
            found[f"{case} {dtype}"] = hidden.to(dtype), weight.to(dtype), bias.to(dtype), options
    eligible = torch.arange(18) % 3 != 0
    found["eligible"] = hidden, weight, None, {"temperature": torch.linspace(0, 2, 18), "eligible": eligible}
    found["three dimensions"] = hidden.view(2, 9, 24), weight, None, {"temperature": 1.0, "top_k": 7}
    for i, row in enumerate(awkward_rows(VOCABULARY, torch.float32)):
        for case in ("greedy", "noise", "both"):
            found[f"awkward {i} {case}"] = torch.ones(1, 1), row[:, None], None, CASES[case]
    return found


def in_process(rank, size, path, splits):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/init", rank=rank, world_size=size)
    results, exchanged = {}, 0
    all_gather = torch.distributed.all_gather

    def counted(tensors, tensor, group=None):
        nonlocal exchanged
        exchanged += tensor.numel() * tensor.element_size()
        return all_gather(tensors, tensor, group=group)

    torch.distributed.all_gather = counted
    for split, spans in enumerate(splits):
        begin, end = spans[rank]
        for name, (hidden, weight, bias, options) in problems().items():
            exchanged = 0
            scores = score_hidden_parallel(
                hidden, weight[begin:end], None if bias is None else bias[begin:end], vocab_start=begin,
                vocabulary=VOCABULARY, seed=5, batch_invariant=True, **options,
            )  # fmt: skip
            results[split, name] = (scores, exchanged)
    try:
        score_hidden_parallel(hidden, weight[:3], vocab_start=0, vocabulary=VOCABULARY)
    except InvalidArgumentError as error:
        results["uncovered"] = str(error)
    torch.save(results, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3])
def test_shards_choose_the_tokens_of_the_whole_head(size, tmp_path, capsys):
    torch.multiprocessing.spawn(in_process, (size, str(tmp_path), SPLITS[size]), nprocs=size)
    with torch.serialization.safe_globals([TokenScores]):
        ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for name, (hidden, weight, bias, options) in problems().items():
        whole = score_hidden(hidden, weight, bias, seed=5, batch_invariant=True, backend="cpu", **options)
        for split, spans in enumerate(SPLITS[size]):
            for rank, results in enumerate(ranks):
                scores, _ = results[split, name]
                label = f"{name}, shards {spans}, rank {rank}"
                assert_equal(f"token ({label})", scores.token, whole.token)
                for field in STATISTICS:
                    truth = getattr(whole, field)
                    assert_no_worse(field, getattr(scores, field), truth, truth)
                    assert_equal(
                        f"{field} of rank {rank}", getattr(scores, field), getattr(ranks[0][split, name][0], field)
                    )
            if split == 0 and name in ("greedy torch.float32", "noise torch.float32", "top_p torch.float32"):
                with capsys.disabled():
                    print(f"\n{size} processes, {name}, shards {spans}")
                    print("  whole head", whole.token.tolist())
                    print("  in shards ", scores.token.tolist())
    for results in ranks:
        assert "cover" in results["uncovered"]
        for (_, name), (scores, exchanged) in ((k, v) for k, v in results.items() if k != "uncovered"):
            rows, options = scores.token.numel(), problems()[name][3]
            if "top_p" not in options:  # five or ten numbers a row, k + 1 pairs, and where the shard is
                entries = min(options.get("top_k", -1) + 1, 2048)
                searched = entries == 2048  # then a second time, and bins
                numbers = 2 * 8 * 5 + 8 * entries + 4 + searched * 4 * 8 * 256
                assert exchanged <= 16 + rows * (1 + searched) * numbers, name


W = torch.zeros(6, 4)


@pytest.mark.parametrize(
    ("hidden", "shard", "options", "argument", "says"),
    [
        (torch.zeros(2, 3), W, {}, "weight_shard", r"\[any, 3\]"),
        (torch.zeros(2, 4), W.half(), {}, "weight_shard", "float16"),
        (torch.zeros(2, 4), W, {"bias_shard": torch.zeros(5)}, "bias_shard", r"\[6\]"),
        (torch.zeros(2, 4), W, {"vocab_start": -1}, "vocab_start", "-1"),
        (torch.zeros(2, 4), W, {"vocab_start": 5}, "vocab_start", "11"),
        (torch.zeros(2, 4), W, {"vocabulary": 2.0}, "vocabulary", "2.0"),
        (torch.zeros(2, 4), W, {"suppress_ids": [10]}, "suppress_ids", r"\[0, 10\)"),
        (torch.zeros(2, 4), W, {"temperature": math.nan}, "temperature", "nan"),
    ],
)
def test_bad_input(hidden, shard, options, argument, says):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        score_hidden_parallel(hidden, shard, **{"vocab_start": 0, "vocabulary": 10, **options})
    assert str(caught.value).split()[0] == argument


def test_only_the_cpu_backend_has_it():
    with pytest.raises(BackendUnavailableError, match="cpu backend"):
        score_hidden_parallel(torch.zeros(2, 4), W, vocab_start=0, vocabulary=6, backend="reference")
