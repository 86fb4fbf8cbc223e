"""`absorbing_step_`, `uniform_step_`, `score_entropy_step_` against the formulas as their authors' code evaluates them.

The published forms draw from torch's stream, so results differ draw by draw; the op's tests compare distributions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dlm_benches.kernels.cases import Case, Rival, Sizes, Workload, make_logits
from dlm_kernels import absorbing_step_, score_entropy_step_, uniform_step_
from dlm_kernels.roofline import Traffic, bytes_moved

OPS = ("absorbing_step_", "uniform_step_", "score_entropy_step_")
GPT2_AND_MASK, BERT = 50258, 30522  # vocabularies of MDLM and SEDD on OpenWebText, of UDLM and Duo on LM1B
T, S = 0.5, 0.45  # times of the step, log-linear schedule: alpha = 1 - t
DELTA_SIGMA = 0.1


def cases(op: str, sizes: Sizes) -> list[Case]:
    batch = max(sizes.rows or [4])
    vocabulary = (sizes.vocabulary or [BERT if op == "uniform_step_" else GPT2_AND_MASK])[0]
    settings = {
        "absorbing_step_": ["MDLM"],
        "uniform_step_": ["leave_one_out", "posterior"],
        "score_entropy_step_": ["absorb, analytic", "absorb, euler", "uniform, analytic", "uniform, euler"],
    }[op]
    shape = {"batch": batch, "length": 256, "vocabulary": vocabulary}
    return [Case(op, shape, dtype, "mixed", s) for dtype in sizes.dtype or ["fp32"] for s in settings]


def build(case: Case, compile_: bool = True) -> Workload:
    batch, length, vocabulary = (case.shape[name] for name in ("batch", "length", "vocabulary"))
    logits = make_logits((batch, length, vocabulary), case.torch_dtype, case.inputs)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocabulary - 1, (batch, length), generator=generator)
    make = {"absorbing_step_": _absorbing, "uniform_step_": _uniform, "score_entropy_step_": _score_entropy}
    return make[case.op](case, logits, tokens)


def _measured(
    case: Case, ours: Callable[[str | None], Tensor], tokens: Tensor, read: Tensor, traffic: Callable[[int], Traffic]
) -> Workload:
    """A workload whose traffic depends on how many positions change, which one call tells."""
    work = Workload(ours, traffic(0), read, state=(tokens,))
    work.traffic = traffic(int(work.result(lambda: ours(None))[1].sum()))
    work.restore()
    return work


def _absorbing(case: Case, logits: Tensor, tokens: Tensor) -> Workload:
    mask_id = logits.shape[-1] - 1
    tokens[torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < T] = mask_id

    def ours(backend: str | None) -> Tensor:
        return absorbing_step_(tokens, logits, mask_id=mask_id, alpha_t=1 - T, alpha_s=1 - S, backend=backend)

    def traffic(changed: int) -> Traffic:
        return bytes_moved("absorbing_step_", **case.shape, itemsize=case.itemsize, filled=changed, remasked=0)

    work = _measured(case, ours, tokens, logits, traffic)
    work.rivals["MDLM update, eager"] = Rival(lambda: mdlm_update(tokens, logits, mask_id))
    return work


def mdlm_update(tokens: Tensor, logits: Tensor, mask_id: int) -> Tensor:
    """SUBS parameterisation and the posterior over all V states, drawn by exponentials in fp32 (arXiv:2406.07524)."""
    x = logits.float()
    x[..., mask_id] = -torch.inf
    q = x.log_softmax(-1).exp() * (T - S)
    q[..., mask_id] = S
    drawn = by_exponentials(q)
    return torch.where(tokens == mask_id, drawn, tokens)


def by_exponentials(weights: Tensor) -> Tensor:
    """argmax of weight / Exp(1): how MDLM, SEDD and Duo draw."""
    return (weights / (1e-10 - (torch.rand_like(weights) + 1e-10).log())).argmax(-1)


def _uniform(case: Case, logits: Tensor, tokens: Tensor) -> Workload:
    def ours(backend: str | None) -> Tensor:
        return uniform_step_(tokens, logits, denoiser=case.settings, alpha_t=1 - T, alpha_s=1 - S, backend=backend)

    def traffic(changed: int) -> Traffic:
        return bytes_moved("uniform_step_", **case.shape, itemsize=case.itemsize, changed=changed)

    work = _measured(case, ours, tokens, logits, traffic)
    if case.settings == "leave_one_out":
        work.rivals["Duo posterior, eager fp64"] = Rival(lambda: duo_update(tokens, logits.double()))
        work.rivals["Duo posterior, eager fp32"] = Rival(lambda: duo_update(tokens, logits.float()))
    else:
        work.rivals["draw x_0, then route, eager"] = Rival(lambda: routed_update(tokens, logits))
    return work


def duo_update(tokens: Tensor, logits: Tensor) -> Tensor:
    """q(x_s | x_t) over all V states with the denoiser plugged in (UDLM, arXiv:2412.10193; Duo, arXiv:2506.10892)."""
    p = logits.softmax(-1)
    vocabulary, alpha_t, alpha_s = p.shape[-1], 1 - T, 1 - S
    ratio = alpha_t / alpha_s
    here = torch.nn.functional.one_hot(tokens, vocabulary).to(p.dtype)
    at_tokens = p.gather(-1, tokens[..., None])
    above = alpha_t * vocabulary * p * here + (ratio - alpha_t) * here
    above = above + (alpha_s - alpha_t) * p + (1 - ratio) * (1 - alpha_s) / vocabulary
    return by_exponentials(above / (alpha_t * vocabulary * at_tokens + 1 - alpha_t))


def routed_update(tokens: Tensor, logits: Tensor) -> Tensor:
    """x_0 from p(x_0 | x_t), then stay, clean or noise (D3PM, arXiv:2107.03006), as diffusers' DiscreteDDIMScheduler does."""
    vocabulary, alpha_t, alpha_s = logits.shape[-1], 1 - T, 1 - S
    clean = logits.float().softmax(-1).flatten(0, 1).multinomial(1).view(tokens.shape)
    ratio = alpha_t / alpha_s
    stay = alpha_t * vocabulary * (clean == tokens) + ratio - alpha_t
    weights = torch.stack(
        (stay, torch.full_like(stay, alpha_s - alpha_t), torch.full_like(stay, (1 - ratio) * (1 - alpha_s))), -1
    )
    route = weights.flatten(0, 1).multinomial(1).view(tokens.shape)
    noise = torch.randint_like(tokens, vocabulary)
    return torch.where(route == 0, tokens, torch.where(route == 1, clean, noise))


def _score_entropy(case: Case, log_score: Tensor, tokens: Tensor) -> Workload:
    graph, method = case.settings.split(", ")
    mask_id = log_score.shape[-1] - 1 if graph == "absorb" else None
    log_score -= log_score.logsumexp(-1, keepdim=True)  # scores of a masked position sum to about 1
    if mask_id is not None:
        tokens[torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < T] = mask_id
    movable = tokens.numel() if mask_id is None else int((tokens == mask_id).sum())

    def ours(backend: str | None) -> Tensor:
        return score_entropy_step_(
            tokens, log_score, graph=graph, method=method, mask_id=mask_id, delta_sigma=DELTA_SIGMA, backend=backend
        )

    def traffic(changed: int) -> Traffic:
        return bytes_moved(
            "score_entropy_step_", **case.shape, itemsize=case.itemsize, movable=movable, changed=changed
        )

    work = _measured(case, ours, tokens, log_score, traffic)
    update = {"euler": sedd_euler, "analytic": sedd_analytic}[method]
    work.rivals[f"SEDD {method} update, eager"] = Rival(lambda: update(tokens, log_score, mask_id))
    return work


def sedd_euler(tokens: Tensor, log_score: Tensor, mask_id: int | None) -> Tensor:
    """one_hot(x_t) + step * reverse rate over all V states (SEDD, arXiv:2310.16834)."""
    score, vocabulary = log_score.float().exp(), log_score.shape[-1]
    here = tokens[..., None]
    rate = score / vocabulary if mask_id is None else score * (tokens == mask_id)[..., None]
    rate = rate.scatter(-1, here, 0.0)
    rate = rate.scatter(-1, here, -rate.sum(-1, keepdim=True))
    return by_exponentials(torch.nn.functional.one_hot(tokens, vocabulary) + DELTA_SIGMA * rate)


def sedd_analytic(tokens: Tensor, log_score: Tensor, mask_id: int | None) -> Tensor:
    """Staggered score times the transposed transition, both over all V states."""
    score = log_score.float().exp().scatter(-1, tokens[..., None], 1.0)
    vocabulary = log_score.shape[-1]
    here = torch.nn.functional.one_hot(tokens, vocabulary).float()
    e = torch.tensor(-DELTA_SIGMA).exp()
    if mask_id is None:
        staggered = (e - 1) / (vocabulary * e) * score.sum(-1, keepdim=True) + score / e
        transition = (1 - e) / vocabulary + e * here
    else:
        staggered = score / e
        staggered[..., mask_id] += (1 - 1 / e) * score.sum(-1)
        transition = e * here + torch.where(tokens == mask_id, 1 - e, torch.zeros(()))[..., None]
    return by_exponentials(staggered * transition)
