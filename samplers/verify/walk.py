"""Recognises the sampler's walk among the nodes of a draft. B rows, W nodes each, flattened to B * W in a state."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_samplers.policies import Policy
from dlm_samplers.state import SamplerState
from dlm_samplers.verify.memory import ours


def successors(nodes: SamplerState, after: SamplerState, width: int, fields: tuple[str, ...]) -> Tensor:
    """int64 [B, W]: the node that is the state after each node's step; W where there is none.

    A node is that state when its canvas, its `fields` and all that the policy remembers are those of `after`.
    """
    pairs = [(nodes.tokens, after.tokens), *((getattr(nodes, name), getattr(after, name)) for name in fields)]
    for mine, theirs in ((nodes.memory, after.memory), (nodes.position_memory, after.position_memory)):
        pairs += [(mine[name], theirs[name]) for name in mine if not ours(name)]
    same = ~torch.eye(width, dtype=torch.bool, device=nodes.tokens.device)
    for mine, theirs in pairs:
        equal = _grid(theirs, width)[:, :, None] == _grid(mine, width)[:, None]
        same = same & (equal if equal.ndim == 3 else equal.flatten(3).all(-1))
    return torch.where(same.any(-1), same.int().argmax(-1), width)


def walk(successor: Tensor) -> Tensor:
    """int64 [B, W]: the nodes that the walk comes through, from the first one on; W after its end."""
    width = successor.shape[1]
    successor = torch.nn.functional.pad(successor, (0, 1), value=width)
    path = [successor.new_zeros(len(successor), 1)]
    for _ in range(width - 1):
        path.append(successor.gather(1, path[-1]))
    return torch.cat(path, dim=1)


def until_stopped(path: Tensor, live: Tensor) -> Tensor:
    """The path up to and with the first node after whose step the row no longer lives; live: bool [B * W]."""
    width = path.shape[1]
    stopped = ~_grid(live, width).gather(1, path.clamp(max=width - 1)) & (path < width)
    before = stopped.cumsum(-1) - stopped.long()
    return path.masked_fill(before > 0, width)


def on_path(path: Tensor) -> Tensor:
    """bool [B, W]: nodes that the walk comes through."""
    width = path.shape[1]
    none = torch.zeros(len(path), width + 1, dtype=torch.bool, device=path.device)
    return none.scatter_(1, path, True)[:, :width]


def keep_books(nodes: SamplerState, state: SamplerState, path: Tensor) -> None:
    """Gives the nodes on the path the step and the block that the walk reaches them in.

    A draft knows canvases; how many steps lead to one, and which blocks those lie in, the walk tells.
    """
    width = path.shape[1]
    depth = torch.arange(width, device=path.device)
    visited = path.clamp(max=width - 1)
    end = _grid(nodes.block_end, width).gather(1, visited)
    enters = torch.zeros_like(end, dtype=torch.bool)
    enters[:, 1:] = end[:, 1:] != end[:, :-1]
    since = torch.where(enters, depth, 0).cummax(-1).values  # the depth at which the node's block was entered
    earlier = since == 0  # it was entered before this draft
    start_of_new = end.gather(1, (since - 1).clamp(min=0))
    books = {
        "step": state.step[:, None] + depth,
        "block_start": torch.where(earlier, state.block_start[:, None], start_of_new),
        "block_step": depth - since + torch.where(earlier, state.block_step[:, None], 0),
        "block_masks": _grid(nodes.block_masks, width).gather(1, visited).gather(1, since),
    }
    for name, value in books.items():
        column_for_none = torch.nn.functional.pad(_grid(getattr(nodes, name), width), (0, 1))
        setattr(nodes, name, column_for_none.scatter_(1, path, value)[:, :width].flatten())


def advance(state: SamplerState) -> None:
    """Counts a step of the live rows."""
    state.step = state.step + state.live
    state.block_step = state.block_step + state.live


def skip_idle(state: SamplerState, policy: Policy) -> None:
    """Takes the steps in which nothing may commit, which need no forward. Only for policies that foresee them; one look at
    the device for each such step."""
    while policy.foresees:
        idle = state.live & ~policy.candidates(state).any(-1)
        if not bool(idle.any()):
            return
        state.step = state.step + idle
        state.block_step = state.block_step + idle
        state.enter_blocks()


def _grid(value: Tensor, width: int) -> Tensor:
    return value.unflatten(0, (-1, width))
