"""A model's forward up to one of its modules."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn

from dlm_kernels import InvalidArgumentError


class _Reached(Exception):
    """Carries the output out of a forward."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Until:
    """Called like a trunk, returns the output of a module inside it; nothing after that is computed.

    For a trunk that applies the LM head itself: its product with the vocabulary is most of what a small window would cost.
    """

    def __init__(self, trunk: Any, module: nn.Module, path: str) -> None:
        self.trunk, self.module, self.path = trunk, module, path
        self.forward = getattr(trunk, "forward", trunk)  # whose signature it has

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Raises InvalidArgumentError where the trunk's forward does not come by the module."""
        caller = threading.get_ident()

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            if threading.get_ident() == caller:  # others may be using the model
                raise _Reached(output)

        handle = self.module.register_forward_hook(stop)
        try:
            self.trunk(*args, **kwargs)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise InvalidArgumentError(
            f"spec.hidden_after = {self.path!r}: a forward of {type(self.trunk).__name__} does not call it"
        )
