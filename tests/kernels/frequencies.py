"""Are these draws from that distribution? And transitions by Bayes' rule from the forward process alone."""

import torch
from scipy.stats import chi2

FALSE_ALARM = 1e-6  # of one test, were its seed drawn anew
LEAST_EXPECTED = 5  # outcomes rarer than this share a cell, as usual for chi-square


def p_value(draws, p):
    """Of draws int64 [N] from probabilities p [K], by chi-square. Outcomes of probability 0 must not occur."""
    n, p = draws.numel(), p.double()
    assert abs(float(p.sum()) - 1) < 1e-9
    counts = torch.bincount(draws, minlength=len(p)).double()
    if counts[p == 0].sum() > 0:
        return 0.0
    rare = p * n < LEAST_EXPECTED
    cells = [(counts[i], p[i] * n) for i in range(len(p)) if p[i] > 0 and not rare[i]]
    if float(p[rare].sum()) * n >= LEAST_EXPECTED:
        cells.append((counts[rare].sum(), p[rare].sum() * n))
    if len(cells) < 2:
        return 1.0
    return float(chi2.sf(sum(float((c - e) ** 2 / e) for c, e in cells), len(cells) - 1))


def assert_draws_from(p, draws):
    value = p_value(draws, p)
    assert value > FALSE_ALARM, (value, torch.bincount(draws, minlength=len(p)) / draws.numel(), p)


def forward_matrix(alpha, noise):
    """[V, V]: row x0 is q(x_t | x_0) = alpha 1{x_t = x_0} + (1 - alpha) noise(x_t)."""
    return alpha * torch.eye(len(noise), dtype=torch.float64) + (1 - alpha) * noise.double()


def reverse_by_bayes(prior, alpha_t, alpha_s, noise):
    """q(x_s | x_t), row x_t: sum over x_0 of prior(x_0) q(x_s | x_0) q(x_t | x_s), normalised.

    q(x_t | x_s) is the forward process of signal alpha_t / alpha_s. Rows that cannot occur are NaN.
    """
    at_s = prior.double() @ forward_matrix(alpha_s, noise)
    joint = at_s[:, None] * forward_matrix(alpha_t / alpha_s, noise)  # [x_s, x_t]
    return (joint / joint.sum(0)).T
