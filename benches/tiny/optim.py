"""Muon for the matrices inside the blocks, AdamW for everything else, in plain fp32 batched over equal shapes.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers"): the update is the momentum, orthogonalised by five
Newton-Schulz steps. `torch.optim.Muon` iterates in bfloat16 matrix by matrix, which CPUs without bf16 units do slowly.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearly the closest semi-orthogonal matrices (singular values 0.7 to 1.2): [N, rows <= columns] -> same shape."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def _wide(parameter: Tensor) -> list[Tensor]:
    """Views of a weight as matrices with rows <= columns: fused square projections apart, tall ones transposed."""
    rows, columns = parameter.shape
    if rows == 3 * columns:
        return list(parameter.chunk(3))
    return [parameter.mT if rows > columns else parameter]


class MuonAdamW:
    """Two optimisers behind one `step(lr_scale)`; the state is a flat dict of tensors, so that it needs no pickle."""

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        matrix_lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        self.lr, self.matrix_lr, self.momentum, self.weight_decay = lr, matrix_lr, momentum, weight_decay
        named = list(named_parameters)
        self.parameters = [p for _, p in named]
        matrices = [p for n, p in named if ".layers." in n and p.dim() == 2]
        others = [p for n, p in named if not (".layers." in n and p.dim() == 2)]
        self.groups: dict[str, list[nn.Parameter]] = {}
        for parameter in matrices:
            rows, columns = _wide(parameter)[0].shape
            self.groups.setdefault(f"{rows}x{columns}", []).append(parameter)
        self.buffers = {
            shape: torch.zeros_like(torch.stack([m for p in group for m in _wide(p.data)]))
            for shape, group in self.groups.items()
        }
        self.adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, lr_scale: float, max_norm: float = 1.0) -> None:
        """Clips the gradient norm of all parameters, updates them and clears the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, max_norm)
        for shape, group in self.groups.items():
            gradient = torch.stack([m for p in group if p.grad is not None for m in _wide(p.grad)])
            buffer = self.buffers[shape]
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum))  # Nesterov
            targets = [m for p in group for m in _wide(p.data)]
            rate = self.matrix_lr * lr_scale * max(1.0, update.shape[2] / update.shape[1]) ** 0.5
            torch._foreach_mul_(targets, 1 - self.matrix_lr * lr_scale * self.weight_decay)
            torch._foreach_add_(targets, list(update.unbind()), alpha=-rate)
        for options in self.adamw.param_groups:
            options["lr"] = self.lr * lr_scale
        self.adamw.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        state = {f"muon.{shape}": buffer for shape, buffer in self.buffers.items()}
        for index, values in self.adamw.state_dict()["state"].items():
            state |= {f"adamw.{index}.{name}": value for name, value in values.items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        for shape, buffer in self.buffers.items():
            buffer.copy_(state[f"muon.{shape}"])
        whole = self.adamw.state_dict()
        for key, value in state.items():
            if key.startswith("adamw."):
                _, index, name = key.split(".")
                whole["state"].setdefault(int(index), {})[name] = value.clone()
        self.adamw.load_state_dict(whole)
