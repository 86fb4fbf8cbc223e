"""What a model repository holds as custom_generate/generate.py, so that its `generate` is this library's.

model.generate(..., custom_generate="folder or repository", trust_remote_code=True)
"""

from dlm_samplers.integrations.transformers import generate

__all__ = ["generate"]
