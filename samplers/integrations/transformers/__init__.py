"""Models of transformers on this library's kernels; one module per kind of model, to be imported by its name."""
