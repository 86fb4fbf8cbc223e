import hashlib
import math

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import keyed_uniform
from dlm_kernels.reference import portable_math
from dlm_kernels.reference.philox import uniform_from_word
from dlm_kernels.rng import gumbel, make_row_ids, philox4x32

pytestmark = pytest.mark.usefixtures("poisoned_empty")

# Philox4x32-10 known answers of Random123 (kat_vectors).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_in_python(counter, key):
    """The algorithm in Python's unbounded integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    mask = 2**32 - 1
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & mask, (p0 >> 32) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, wanted):
    words = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in words) == wanted
    assert philox_in_python(counter, key) == wanted


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 123456789012345])
@pytest.mark.parametrize("row_id", [0, 5, (3 << 32) | 7, 2**63 - 1])
@pytest.mark.parametrize(("step", "stream"), [(0, 1), (2**32 - 1, 255), (77, 0)])
def test_keyed_uniform_is_word_0_of_its_key(backend, seed, row_id, step, stream):
    key = (seed & (2**32 - 1), (seed >> 32) & (2**32 - 1))
    word = philox_in_python((stream << 24, row_id & (2**32 - 1), step, row_id >> 32), key)[0]
    wanted = uniform_from_word(torch.tensor(word))
    assert_equal("uniform", keyed_uniform(seed, row_id, step, stream=stream, backend=backend), wanted)


def test_keyed_uniform_broadcasts(backend):
    seed, row_ids, step = torch.tensor([[1], [2]]), torch.arange(5), torch.tensor(3)
    u = keyed_uniform(seed, row_ids, step, backend=backend)
    assert u.shape == (2, 5)
    for b in range(2):
        for i in range(5):
            assert_equal("u", u[b, i], keyed_uniform(b + 1, i, 3, backend=backend))
    assert keyed_uniform(seed[:0], row_ids, 0, backend=backend).shape == (0, 5)
    assert keyed_uniform(torch.tensor(1, dtype=torch.int32), 0, 0, backend=backend).shape == ()


def test_backends_draw_the_same_uniforms(fast_backend):
    keys = torch.randint(-(2**63), 2**63 - 1, (3, 20_000))
    got, wanted = (keyed_uniform(*keys, stream=9, backend=name) for name in (fast_backend, "reference"))
    assert_equal("uniform", got, wanted)


def test_keyed_uniforms_are_uniform(backend):
    u = keyed_uniform(7, torch.arange(100_000), 0, backend=backend)
    assert u.min() > 0
    assert u.max() < 1
    distance = (u.sort().values.double() - (torch.arange(100_000) + 0.5) / 100_000).abs().max()
    assert distance < 2.65 / math.sqrt(100_000)  # Kolmogorov-Smirnov: exceeded by chance once in 6e5 seeds


def test_uniform_and_gumbel_stay_in_range_at_both_ends():
    words = torch.tensor([0, 1, 2, 2**24, 2**31, 2**32 - 2**7, 2**32 - 2, 2**32 - 1])
    u = uniform_from_word(words)
    assert u.dtype == torch.float32
    assert u[0] == 2.0**-33
    assert u[-1] == 1 - 2.0**-24
    assert (u.diff() >= 0).all()
    g = portable_math.gumbel_from_uniform(u)
    assert g.isfinite().all()
    assert g.max() < 22.9  # kernels skip what cannot win even with the largest noise: 22.9
    assert g.min() > -3.0


def test_gumbel_matches_its_formula_in_fp64():
    words = torch.randint(2**32, (1_000_000,))
    u = uniform_from_word(words)
    truth = -torch.log(-torch.log1p(-u.double()))
    assert (portable_math.gumbel_from_uniform(u).double() - truth).abs().max() < 1.2e-6


def test_log_matches_fp64():
    y = torch.cat([torch.rand(500_000), torch.rand(500_000) * 30, 2.0 ** torch.arange(-126.0, 5.0)]).clamp(
        min=2.0**-126
    )
    truth = y.double().log()
    assert ((portable_math.log(y).double() - truth).abs() / truth.abs().clamp(min=1e-3)).max() < 2e-7


def test_exp_matches_fp64():
    x = torch.cat([-torch.rand(1_000_000) * 87, torch.tensor([0.0, -0.0, -86.999, -87.0])])
    truth = x.double().exp()
    assert ((portable_math.exp(x).double() - truth) / truth).abs().max() < 2e-7
    assert portable_math.exp(torch.tensor([0.0])).item() == 1.0
    assert portable_math.exp(torch.tensor([-87.1, -1e30, -math.inf])).tolist() == [0.0, 0.0, 0.0]


def test_gumbel_has_these_bits():
    """Saved draws: a change of any bit here changes sampled texts."""
    noise = gumbel(20240607, make_row_ids(3, 17), 5, 2**16)
    assert hashlib.sha256(noise.numpy().tobytes()).hexdigest().startswith("212240c12b72f89b3824777a5b721e2d")
    bits = noise[:8].view(torch.int32).tolist()
    assert bits == [-1122515351, 1068884610, 1065370450, -1098166588, 1067000045, -1119013556, 1074815768, 1069194241]


def test_gumbel_is_the_noise_of_score_tokens(backend):
    from dlm_kernels import score_tokens

    ids = make_row_ids(torch.tensor([[0], [9]]), torch.arange(4))
    noise = gumbel(42, ids, 6, 301)
    token = score_tokens(torch.zeros(2, 4, 301), temperature=1.0, seed=42, row_ids=ids, step=6, backend=backend).token
    assert_equal("token", token, noise.argmax(-1))


def test_row_ids_hold_request_and_position():
    ids = make_row_ids(torch.tensor([[0], [1], [2**31 - 1]]), torch.tensor([0, 4095, 2**32 - 1]))
    assert ids.dtype == torch.int64
    assert (ids >> 32).tolist() == [[0] * 3, [1] * 3, [2**31 - 1] * 3]
    assert (ids & (2**32 - 1)).tolist() == [[0, 4095, 2**32 - 1]] * 3
    assert make_row_ids(1, 2).item() == (1 << 32) | 2
