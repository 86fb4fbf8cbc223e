"""The masked-token update, in place."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

from torch import Tensor

from dlm_kernels.cpu.library import library


def commit_(tokens: Tensor, proposal: Tensor, selected: Tensor) -> None:
    """tokens[selected] = proposal[selected]; all [B, L]."""
    arguments = []
    for tensor in (tokens, proposal, selected):
        arguments += [c_void_p(tensor.data_ptr()), *map(c_int64, tensor.stride())]
    library().dlmk_commit(*arguments, *map(c_int64, tokens.shape))
