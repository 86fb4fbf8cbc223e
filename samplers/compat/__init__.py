"""Function swaps: the signatures and defaults of published samplers, on this library's kernels."""
