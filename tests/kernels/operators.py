"""opcheck and torch.compile of a public function, by the operator calls that it makes."""

import torch
from tolerances import assert_equal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dlm_kernels import use_backend
from dlm_kernels.library import NAMESPACE


class Recorder(TorchDispatchMode):
    """Keeps (operator, copies of the arguments) of every call of one of ours."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == NAMESPACE:
            # clone() would turn expanded arguments into dense ones; only what is written needs a copy.
            copies = [a.clone() if isinstance(a, torch.Tensor) and 0 not in a.stride() else a for a in args]
            self.calls.append((operator, tuple(copies)))
        return operator(*args, **(kwargs or {}))


def check_operator(op, *calls):
    """Schema (no hidden writes, no aliases), autograd registration, fake shapes and strides, functionalisation."""
    for call in calls:
        with Recorder() as recorder:
            call()
        recorded = [(operator, args) for operator, args in recorder.calls if operator._schema.name.endswith(f"::{op}")]
        assert recorded, f"{op} was not called"
        for operator, args in recorded:
            torch.library.opcheck(operator, args)


def check_compiles(function, *inputs, backend="reference"):
    """`function(*inputs)` as one graph gives what it gives eagerly, tensors that it writes included."""
    torch.compiler.reset()
    eager, compiled = (tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, inputs) for _ in range(2))
    with use_backend(backend):
        wanted = function(*eager)
        got = torch.compile(function, fullgraph=True, backend="aot_eager")(*compiled)
    for name, a, b in (("result", got, wanted), ("input", compiled, eager)):
        for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
            if isinstance(y, torch.Tensor):
                assert_equal(name, x, y)
