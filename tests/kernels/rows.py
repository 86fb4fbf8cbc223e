"""Rows of logits with everything that has ever gone wrong in a softmax."""

import math

import torch

NAMES = (
    "gaussian", "peaked", "ties", "constant", "some_minus_inf", "one_finite", "all_minus_inf", "one_plus_inf", "two_plus_inf",
    "nan", "nan_and_inf", "huge_1e30", "largest", "largest_both_signs", "minus_inf_then_largest", "signed_zeros", "all_large",
    "last_wins", "subnormal_in_fp16",
)  # fmt: skip


def awkward_rows(vocabulary, dtype, seed=0):
    """[len(NAMES), V]; what does not fit into V entries or the dtype's range is clipped."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    largest = min(3e38, torch.finfo(dtype).max)
    x = torch.randn(len(NAMES), vocabulary, generator=generator) * 3
    at = {name: x[i] for i, name in enumerate(NAMES)}
    first, middle, last = 0, vocabulary // 2, vocabulary - 1

    at["peaked"].mul_(0.3)[middle] = 25.0
    at["ties"].round_()
    at["constant"].fill_(1.5)
    at["some_minus_inf"][::3] = -math.inf
    at["one_finite"].fill_(-math.inf)[middle] = -7.0
    at["all_minus_inf"].fill_(-math.inf)
    at["one_plus_inf"][middle] = math.inf
    at["two_plus_inf"][[middle, last]] = math.inf
    at["nan"][middle:] = math.nan
    at["nan_and_inf"][last] = math.nan
    at["nan_and_inf"][first] = math.inf if vocabulary > 1 else math.nan
    at["huge_1e30"].mul_(min(1e30, largest / 100))
    at["largest"].fill_(-1.0)[last] = largest
    at["largest_both_signs"].copy_(torch.where(torch.arange(vocabulary) % 2 == 0, largest, -largest))
    at["minus_inf_then_largest"].fill_(-math.inf)[last] = largest
    at["signed_zeros"].copy_(torch.where(torch.arange(vocabulary) % 2 == 0, -0.0, 0.0))
    at["all_large"].add_(1000.0)
    at["last_wins"].copy_(torch.linspace(-5, 5, vocabulary) if vocabulary > 1 else torch.tensor([5.0]))
    at["subnormal_in_fp16"].copy_((torch.arange(vocabulary) * 37 % 2048) * 2.0**-24)
    return x.to(dtype)
