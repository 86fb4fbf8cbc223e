"""Steps decided so narrowly that the shape of the batch could turn them are computed again, alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, commit_
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.loop import Loop


class Guard:
    """The narrow decisions of one forward. B rows, W nodes each."""

    def __init__(
        self, loop: Loop, delta: float, nodes: SamplerState, evaluation: Evaluation, chosen: Tensor, after: SamplerState
    ) -> None:
        """nodes: before the forward; after: with what the policy noted of it, before the commit."""
        leeway = loop.sampler.policy.leeway(evaluation.scores, chosen, after)
        if leeway is None:
            raise InvalidArgumentError(
                f"{loop.sampler.policy} does not say how near it was to another choice: guard=None"
            )
        between_tokens = evaluation.scores.margin.masked_fill(~chosen, torch.inf).amin(-1)
        self.narrow = torch.minimum(leeway, between_tokens) < delta
        self.loop, self.nodes = loop, nodes

    def settle(self, after: SamplerState, evaluation: Evaluation, path: Tensor) -> bool:
        """Computes each row's first narrow step on its path again, alone, into `after` and the evaluation's scores.

        False when there was none left. Reads the device.
        """
        width = path.shape[1]
        narrow = torch.nn.functional.pad(self.narrow.unflatten(0, (-1, width)), (0, 1)).gather(1, path)
        found = narrow.any(-1) & after.live.unflatten(0, (-1, width))[:, 0]
        rows = found.nonzero()[:, 0]
        if not rows.numel():
            return False
        nodes = path[rows, narrow[rows].int().argmax(-1)]
        for node in (rows * width + nodes).tolist():
            self._alone(node, after, evaluation)
        return True

    def _alone(self, node: int, after: SamplerState, evaluation: Evaluation) -> None:
        loop, policy, here = self.loop, self.loop.sampler.policy, torch.tensor([node], device=after.tokens.device)
        whole = self.nodes.take(here)
        alone = replace(whole.resized(int(whole.length[0])))
        again, chosen = loop.choose(loop.evaluate(alone, policy.candidates(alone), unpadded=True), alone)
        loop.account(alone, again)
        commit_(alone.tokens, again.scores.token, chosen, backend=loop.sampler.backend)
        after.put(here, alone.resized(whole.width))
        for into, value in zip(evaluation.scores, again.scores, strict=True):
            into[node, : value.shape[1]] = value[0]
        self.narrow[node] = False
