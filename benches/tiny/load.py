"""Reads the bundled models: `load("reasoning")`. Only safetensors and JSON, every tensor checked, never unpickled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlm_benches.tiny.model import TinyAR, TinyConfig, TinyDLM, build

MODELS = Path(__file__).resolve().parent.parent / "models"
FILES = ("model.safetensors", "config.json", "recipe.json", "train_log.jsonl")
STORAGE = torch.float16


class CheckpointError(ValueError):
    """A model folder that is not there, or a config or tensor that is not what the architecture needs."""


def available() -> list[str]:
    """Names that `load` takes: the folders of the package that hold a whole model."""
    if not MODELS.is_dir():
        return []
    return sorted(d.name for d in MODELS.iterdir() if all((d / file).is_file() for file in FILES))


def load(name: str) -> TinyDLM | TinyAR:
    """A bundled model in float32, evaluation mode. Raises `CheckpointError` for an unknown name or bad files."""
    return load_folder(folder_of(name))


def folder_of(name: str) -> Path:
    """Where a bundled model's files are. Raises `CheckpointError` for an unknown name."""
    if name not in available():
        raise CheckpointError(f"name: expected one of {available()}, got {name!r}")
    return MODELS / name


def load_folder(folder: Path) -> TinyDLM | TinyAR:
    """The model in `folder/{config.json,model.safetensors}`, float32, evaluation mode. Raises `CheckpointError`."""
    config = read_config(folder / "config.json")
    model = build(config)
    model.load_state_dict(read_tensors(folder / "model.safetensors", model.state_dict()))
    return model.eval().requires_grad_(False)


def read_recipe(name: str) -> dict[str, Any]:
    """How a bundled model was made and what it scored. Raises `CheckpointError` for an unknown name."""
    return _read_json(folder_of(name) / "recipe.json")


def read_config(path: Path) -> TinyConfig:
    """A config with exactly the fields of `TinyConfig`. Raises `CheckpointError`, naming the field."""
    values = _read_json(path)
    fields = {field.name for field in dataclasses.fields(TinyConfig)}
    if missing := sorted(fields - set(values)):
        raise CheckpointError(f"{path.name}: missing fields {missing}")
    if extra := sorted(set(values) - fields):
        raise CheckpointError(f"{path.name}: unknown fields {extra}")
    try:
        return TinyConfig(**values)
    except ValueError as error:
        raise CheckpointError(f"{path.name}: {error}") from None


def read_tensors(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a safetensors file, stored in float16, as `expected` names and shapes them, in float32.

    Raises `CheckpointError` for an unreadable file, and for a tensor that is missing, unknown, of another shape or
    dtype, or not finite; the message names it, what was expected and what was found.
    """
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: not a readable safetensors file: {error}") from None
    for name, like in expected.items():
        wanted = f"{list(like.shape)} {str(STORAGE)[6:]}"
        if name not in found:
            raise CheckpointError(f"{path.name}: tensor {name!r} is missing: expected {wanted}")
        tensor = found[name]
        if tensor.shape != like.shape or tensor.dtype != STORAGE:
            got = f"{list(tensor.shape)} {str(tensor.dtype)[6:]}"
            raise CheckpointError(f"{path.name}: tensor {name!r}: expected {wanted}, got {got}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path.name}: tensor {name!r}: expected finite values, got NaN or infinity")
    if extra := sorted(set(found) - set(expected)):
        shape = list(found[extra[0]].shape)
        raise CheckpointError(f"{path.name}: tensor {extra[0]!r}: expected no such tensor, got {shape}")
    return {name: tensor.float() for name, tensor in found.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name}: not readable JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name}: expected a JSON object, got {type(values).__name__}")
    return values
