"""Which sets of positions a draft fills, as patterns over the order in which they are expected to commit."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dlm_samplers.verify.graph_table import FREQUENCY

PRIOR_WALKS = 64.0
"""Weight of the calibrated frequencies, in walks seen."""


class Patterns(ABC):
    """A family of sets, and how often the walk came through each of them."""

    @abstractmethod
    def widest(self, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The sets most often met, the empty one first, and in which step from here each is reached.

        (bool [width, P], int64 [width]), over P places of which the last is in no set.
        """


class Chain(Patterns):
    """Each set the one before and the next step's positions: the walk of an order that is known."""

    def widest(self, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        steps = torch.arange(width, device=device)
        return torch.arange(width, device=device) < steps[:, None], steps


class Learned(Patterns):
    """Sets of the first `reach` places by frequency: a prior, and the walks seen since."""

    reach: int

    def __init__(self, frequency: Tensor) -> None:
        self.visits = PRIOR_WALKS * frequency

    def widest(self, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        self.visits = self.visits.to(device)
        met = self.visits.topk(min(width - 1, len(self.visits) - 1)).indices
        numbers = torch.cat([met.new_zeros(width - len(met)), met])
        return self.sets(numbers), self.steps(numbers)

    def learn(self, changed: Tensor, place: Tensor, reached: Tensor) -> None:
        """Sets bool [B, W, L] over positions with places [B, 1, L], and bool [B, W] which of them were met."""
        number = torch.where(reached, self.number(changed, place), 0)
        self.visits.index_add_(0, number.flatten(), reached.flatten().float())
        self.visits[0] = -1.0  # the empty set is no draft

    @abstractmethod
    def sets(self, numbers: Tensor) -> Tensor:
        """bool [W, reach + 1] of the sets with these numbers [W]; number 0 is the empty set."""

    def steps(self, numbers: Tensor) -> Tensor:
        """int64 [W]."""
        return self.sets(numbers).sum(-1)

    @abstractmethod
    def number(self, changed: Tensor, place: Tensor) -> Tensor:
        """int64 [B, W]: the sets' numbers, where they lie within reach; 0 for a set that is not of the family."""


class Graph(Learned):
    """Any set of the first places, one commit a step: a draft graph (Spiffy, arXiv:2509.18085), for orders that waver.

    Number: the set as binary digits. The walk may leave a set for any larger one, so the sets form a graph whose edges need
    not be stored.
    """

    reach = 15

    def __init__(self) -> None:
        frequency = torch.zeros(2**self.reach)
        numbers = torch.tensor(list(FREQUENCY))
        frequency[numbers] = torch.tensor(list(FREQUENCY.values()))
        super().__init__(frequency)

    def sets(self, numbers: Tensor) -> Tensor:
        return (numbers[:, None] >> torch.arange(self.reach + 1, device=numbers.device)) & 1 == 1

    def number(self, changed: Tensor, place: Tensor) -> Tensor:
        return (changed * (1 << place.clamp(max=self.reach - 1))).sum(-1)


class Prefixes(Learned):
    """The first n places, for policies that commit as many as the model is sure of. Number: n."""

    reach = 64

    def __init__(self) -> None:
        size = torch.arange(self.reach + 1)
        super().__init__(torch.where(size > 0, 1 / (size + 1), 0) / PRIOR_WALKS)

    def sets(self, numbers: Tensor) -> Tensor:
        return torch.arange(self.reach + 1, device=numbers.device) < numbers[:, None]

    def number(self, changed: Tensor, place: Tensor) -> Tensor:
        size = changed.sum(-1)
        last = torch.where(changed, place, -1).amax(-1)
        return torch.where(last + 1 == size, size, 0)
