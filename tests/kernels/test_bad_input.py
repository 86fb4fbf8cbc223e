import math

import pytest
import torch

from dlm_kernels import (
    DLMKernelsError,
    InvalidArgumentError,
    commit_,
    denoise_step_,
    keyed_uniform,
    score_tokens,
    select_positions,
)
from dlm_kernels.rng import make_row_ids

X = torch.zeros(2, 3, 10)
IDS = torch.zeros(2, 3, dtype=torch.int64)
YES = torch.ones(2, 3, dtype=torch.bool)
SCORE = torch.zeros(2, 3)

SCORING = [
    # arguments, the argument named, what the message must also say
    ({"temperature": -0.1}, "temperature", "-0.1"),
    ({"temperature": math.nan}, "temperature", "nan"),
    ({"temperature": math.inf}, "temperature", "inf"),
    ({"temperature": "1"}, "temperature", "str"),
    ({"temperature": True}, "temperature", "bool"),
    ({"temperature": torch.zeros(3, 2)}, "temperature", r"\[3, 2\]"),
    ({"temperature": torch.zeros(1, 1, 2, 3)}, "temperature", "broadcastable"),
    ({"temperature": YES}, "temperature", "bool"),
    ({"top_k": -1}, "top_k", "-1"),
    ({"top_k": 2.0}, "top_k", "float"),
    ({"top_k": torch.zeros(2, 3)}, "top_k", "float32"),
    ({"top_p": 0.0}, "top_p", r"\(0.0, 1.0\]"),
    ({"top_p": 1.1}, "top_p", "1.1"),
    ({"top_p": math.nan}, "top_p", "nan"),
    ({"seed": 1.5}, "seed", "1.5"),
    ({"seed": 2**64}, "seed", str(2**64)),
    ({"seed": -(2**63) - 1}, "seed", "must be in"),
    ({"seed": torch.zeros(2)}, "seed", r"\[2, 3\]|float32"),
    ({"step": -1}, "step", "-1"),
    ({"step": 2**32}, "step", "4294967295"),
    ({"row_ids": torch.zeros(2, 3)}, "row_ids", "float32"),
    ({"row_ids": torch.arange(4)}, "row_ids", r"\[4\]"),
    ({"suppress_ids": [10]}, "suppress_ids", "10"),
    ({"suppress_ids": [-1]}, "suppress_ids", "-1"),
    ({"suppress_ids": 3}, "suppress_ids", "sequence"),
    ({"suppress_ids": "3"}, "suppress_ids", "sequence"),
    ({"suppress_ids": [1.0]}, "suppress_ids", "float"),
    ({"suppress_ids": torch.zeros(2, 2, dtype=torch.int64)}, "suppress_ids", r"\[S\]"),
    ({"suppress_ids": torch.zeros(2)}, "suppress_ids", "int64"),
    ({"eligible": torch.ones(2, 3)}, "eligible", "bool"),
    ({"eligible": YES[:1]}, "eligible", r"\[2, 3\]"),
    ({"eligible": [True]}, "eligible", "list"),
    ({"confidence": "dream"}, "confidence", "sampling"),
    ({"filter_order": "k"}, "filter_order", "top_p_first"),
    ({"backend": "gpu"}, "backend", "reference"),
    ({"backend": "auto"}, "backend", "reference"),
]
LOGITS = [
    (X.double(), "float64"),
    (X.long(), "int64"),
    (X.tolist(), "list"),
    (None, "NoneType"),
    (torch.zeros(2, 3, 0), "vocabulary"),
    (torch.zeros(()), r"\[\]"),
    (torch.zeros(1).expand(1, 1, 2**26 + 1), "67108865"),
]
SELECTION = [
    ({"quota": -1}, "quota", "-1"),
    ({"quota": 1.0}, "quota", "float"),
    ({"quota": torch.zeros(3, dtype=torch.int64)}, "quota", r"\[2\]"),
    ({"quota": torch.zeros(2)}, "quota", "float32"),
    ({"threshold": 0.0}, "threshold", r"\(0.0, 1.0\]"),
    ({"threshold": 1.5}, "threshold", "1.5"),
    ({"threshold": math.nan}, "threshold", "nan"),
    ({"threshold": torch.zeros(2, 1)}, "threshold", r"\[2, 1\]"),
    ({"factor": 0.0}, "factor", "0.0"),
    ({"factor": math.inf}, "factor", "inf"),
    ({"entropy_bound": -0.5, "entropy": SCORE}, "entropy_bound", "-0.5"),
    ({"entropy_bound": math.nan, "entropy": SCORE}, "entropy_bound", "nan"),
    ({"at_least": -1}, "at_least", "-1"),
    ({"at_least": None}, "at_least", "NoneType"),
    ({"strict": 1}, "strict", "True or False"),
    ({"backend": "gpu"}, "backend", "gpu"),
]


def fails(argument, says, function, *args, **kwargs):
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        function(*args, **kwargs)
    assert str(caught.value).split()[0] == argument, caught.value
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, DLMKernelsError)


@pytest.mark.parametrize(("options", "argument", "says"), SCORING)
def test_scoring_arguments(options, argument, says):
    fails(argument, says, score_tokens, X, **options)
    tokens = torch.full((2, 3), 9)
    fails(argument, says, denoise_step_, tokens, X, mask_id=9, **options)
    assert (tokens == 9).all(), "raised before any work"


@pytest.mark.parametrize(("logits", "says"), LOGITS)
def test_logits(logits, says):
    fails("logits", says, score_tokens, logits)


@pytest.mark.parametrize(("options", "argument", "says"), SELECTION)
def test_selection_arguments(options, argument, says):
    fails(argument, says, select_positions, SCORE, YES, **options)
    if "entropy" not in options:
        tokens = torch.full((2, 3), 9)
        fails(argument, says, denoise_step_, tokens, X, mask_id=9, **options)
        assert (tokens == 9).all(), "raised before any work"


@pytest.mark.parametrize(
    ("score", "eligible", "entropy", "argument"),
    [
        (SCORE.double(), YES, None, "score"),
        (SCORE[0], YES[0], None, "score"),
        (SCORE.tolist(), YES, None, "score"),
        (SCORE, YES.float(), None, "eligible"),
        (SCORE, YES[:, :2], None, "eligible"),
        (SCORE, YES, SCORE[:1], "entropy"),
        (SCORE, YES, SCORE.long(), "entropy"),
        (SCORE, YES, None, "entropy"),
    ],
)
def test_selection_tensors(score, eligible, entropy, argument):
    fails(argument, "must", select_positions, score, eligible, entropy_bound=1.0, entropy=entropy)


@pytest.mark.parametrize(
    ("tokens", "proposal", "selected", "argument"),
    [
        (IDS.int(), IDS, YES, "tokens"),
        (IDS[0], IDS[0], YES[0], "tokens"),
        (IDS[:1, :1].expand(2, 3), IDS, YES, "tokens"),
        (IDS, IDS.int(), YES, "proposal"),
        (IDS, IDS[:1], YES, "proposal"),
        (IDS, IDS, YES.int(), "selected"),
        (IDS, IDS, YES[:, :1], "selected"),
    ],
)
def test_commit(tokens, proposal, selected, argument):
    fails(argument, "must", commit_, tokens, proposal, selected)


@pytest.mark.parametrize(
    ("tokens", "logits", "mask_id", "argument", "says"),
    [
        (IDS.float(), X, 9, "tokens", "float32"),
        (IDS[None], X, 9, "tokens", r"\[1, 2, 3\]"),
        (IDS[:1, :1].expand(2, 3), X, 9, "tokens", "expanded"),
        (IDS, X[:, :2], 9, "logits", r"\[2, 3, V\]"),
        (IDS, X[0], 9, "logits", r"\[B, L, V\]"),
        (IDS, X.double(), 9, "logits", "float64"),
        (IDS, X, 10, "mask_id", "10"),
        (IDS, X, -1, "mask_id", "-1"),
        (IDS, X, None, "mask_id", "NoneType"),
        (IDS, X, 9.0, "mask_id", "float"),
    ],
)
def test_denoise_step(tokens, logits, mask_id, argument, says):
    fails(argument, says, denoise_step_, tokens, logits, mask_id=mask_id)


def test_denoise_step_score_and_missing_mask_id():
    fails("score", "neg_entropy", denoise_step_, IDS, X, mask_id=9, score="entropy")
    with pytest.raises(TypeError, match="mask_id"):
        denoise_step_(IDS, X)


@pytest.mark.parametrize(
    ("keys", "stream", "argument"),
    [
        ((1.0, 0, 0), 1, "seed"),
        ((0, None, 0), 1, "row_ids"),
        ((0, 0, -1), 1, "step"),
        ((0, 0, 0), 256, "stream"),
        ((0, 0, 0), -1, "stream"),
        ((0, 0, 0), 1.0, "stream"),
        ((torch.arange(2), torch.arange(3), 0), 1, "seed,"),
    ],
)
def test_keyed_uniform(keys, stream, argument):
    fails(argument, "must", keyed_uniform, *keys, stream=stream)


def test_row_ids():
    fails("request", "float32", make_row_ids, 1.0, 2)
    fails("position", "float32", make_row_ids, 1, torch.zeros(2))


@pytest.mark.parametrize("device", ["meta"])
def test_tensors_on_another_device(device):
    fails("eligible", device, score_tokens, X, eligible=YES.to(device))
    fails("temperature", device, score_tokens, X, temperature=torch.zeros(2, 3, device=device))
    fails("eligible", device, select_positions, SCORE, YES.to(device))
    fails("logits", "cpu", denoise_step_, IDS, X.to(device), mask_id=9)
    fails("proposal", device, commit_, IDS, IDS.to(device), YES)
