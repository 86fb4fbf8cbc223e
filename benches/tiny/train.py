"""Trains a bundled model: `python -m dlm_benches.tiny.train reasoning --out DIR`. Resumable, no pickle anywhere.

DIR gets `state.safetensors` (weights, averaged weights, optimiser; replaced atomically), `train_log.jsonl`, and at
the end the final `model.safetensors` (averaged weights, float16), `config.json`, `recipe.json` with held-out scores,
and for text `tokenizer.json`: what `benches/models/NAME` holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlm_benches.tiny import evaluate as ev
from dlm_benches.tiny.data_tasks import Batch, causal_batch, masked_batch
from dlm_benches.tiny.data_text import TextTokenizer, corpus, masked_text_batch, token_stream
from dlm_benches.tiny.load import STORAGE, load_folder
from dlm_benches.tiny.model import TinyAR, TinyDLM, build
from dlm_benches.tiny.optim import MuonAdamW
from dlm_benches.tiny.recipes import RECIPES, Recipe, config_for
from dlm_benches.tiny.tasks import TASKS

CHECKPOINT_SECONDS = 120.0
LOG_STEPS = 50


def loss_of(model: TinyDLM | TinyAR, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy in nats; the vocabulary is applied to the counted positions only."""
    counted = batch.weights > 0
    logits = model.lm_head(model.hidden(batch.inputs, batch.attention_mask)[counted])
    weights = batch.weights[counted]
    return (F.cross_entropy(logits, batch.targets[counted], reduction="none") * weights).sum() / weights.sum()


class Run:
    """One training run: model, averaged copy, optimiser, and the files in its folder."""

    def __init__(self, recipe: Recipe, out_dir: Path, *, resume: bool) -> None:
        self.recipe, self.out_dir = recipe, out_dir
        out_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.config = config_for(recipe)
        self.model, self.average = build(self.config), build(self.config)
        self.average.load_state_dict(self.model.state_dict())
        self.average.eval().requires_grad_(False)
        self.optimiser = MuonAdamW(self.model.named_parameters(), lr=recipe.lr, matrix_lr=recipe.matrix_lr)
        self.step, self.seconds = 0, 0.0
        if recipe.objective == "masked-text":
            texts = corpus()
            self.tokenizer = TextTokenizer.train(texts["train"])
            self.stream = token_stream(self.tokenizer, texts["train"])
            self.test_stream = token_stream(self.tokenizer, texts["test"])
            self.test_bytes = sum(len(text) + 1 for text in texts["test"])  # EOS counts as one byte
        self.state_file, self.log_file = out_dir / "state.safetensors", out_dir / "train_log.jsonl"
        if resume and self.state_file.exists():
            self._load_state()
        elif not resume:
            self.log_file.unlink(missing_ok=True)

    def batch(self) -> Batch:
        """The batch of the current step: a function of the recipe's seed and the step alone."""
        recipe, rng = self.recipe, np.random.default_rng([self.recipe.seed, self.step])
        if recipe.objective == "masked-tasks":
            return masked_batch(rng, recipe.batch, recipe.mix_at(self.step), recipe.tight_at(self.step))
        if recipe.objective == "masked-text":
            return masked_text_batch(rng, recipe.batch, self.stream, self.config.mask_token_id)
        return causal_batch(rng, recipe.batch, recipe.mix_at(self.step))

    def advance(self) -> float:
        """One optimiser step; the loss."""
        started = time.monotonic()
        loss = loss_of(self.model, self.batch())
        loss.backward()
        self.optimiser.step(self.recipe.lr_scale(self.step))
        decay = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():  # otherwise the average records every step and memory grows without end
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.seconds += time.monotonic() - started
        return loss.item()

    def log(self, **fields: Any) -> None:
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2), **fields}
        with self.log_file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def save_state(self) -> None:
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        state |= {f"optimiser.{k}": v.contiguous() for k, v in self.optimiser.state().items()}
        _save(state, self.state_file, {"step": str(self.step), "seconds": str(self.seconds)})

    def _load_state(self) -> None:
        with safe_open(self.state_file, "pt") as file:
            metadata = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        if self.log_file.exists():  # what was done after the checkpoint is done again
            lines = self.log_file.read_text().splitlines(keepends=True)
            self.log_file.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step))

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        self.optimiser.load_state(part("optimiser."))

    def quick_evaluation(self, n: int) -> None:
        """Logs held-out scores of the averaged weights: n questions a task, or n windows of text."""
        if self.recipe.objective == "masked-text":
            self.log(evaluation="text", **self.text_scores(self.average, n))
            return
        settings = ["greedy"] if isinstance(self.average, TinyAR) else ["one_a_forward", "threshold_0.9"]
        for setting in settings:
            scores = ev.evaluate(self.average, n, ev.SETTINGS.get(setting))
            compact = {task: [round(s.accuracy, 3), round(s.forwards, 1)] for task, s in scores.items()}
            self.log(evaluation=setting, n=n, accuracy_and_forwards=compact)

    def text_scores(self, model: TinyDLM | TinyAR, windows: int) -> dict[str, float]:
        assert isinstance(model, TinyDLM)
        return ev.text_bits(model, self.test_stream, self.test_bytes, windows=windows)

    def finish(self, n: int) -> None:
        """Writes the final files; the scores in `recipe.json` are those of the stored, rounded weights."""
        tensors = {name: value.to(STORAGE) for name, value in self.average.state_dict().items()}
        _save(tensors, self.out_dir / "model.safetensors", {"format": "pt"})
        _write_json(self.config.to_dict(), self.out_dir / "config.json")
        model = load_folder(self.out_dir)
        held_out: dict[str, Any]
        if self.recipe.objective == "masked-text":
            self.tokenizer.save(self.out_dir / "tokenizer.json")
            held_out = self.text_scores(model, n)
        else:
            settings = ["greedy"] if isinstance(model, TinyAR) else list(ev.SETTINGS)
            held_out = {
                setting: {task: s.to_dict() for task, s in ev.evaluate(model, n, ev.SETTINGS.get(setting)).items()}
                for setting in settings
            }
        summary = {
            "recipe": self.recipe.to_dict(),
            "optimiser": "Muon for the matrices in the blocks, AdamW for the rest; gradient norm clipped at 1",
            "steps_done": self.step,
            "wall_minutes": round(self.seconds / 60, 1),
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "held_out": held_out,
        }
        _write_json(summary, self.out_dir / "recipe.json")


def _write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes beside `path`, then renames, so that a reader never sees half a file."""
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(partial, path)


def train(
    name: str,
    out_dir: str | Path,
    *,
    steps: int | None = None,
    seed: int | None = None,
    mix: dict[str, float] | None = None,
    resume: bool = False,
    evaluate_minutes: float = 5.0,
    stop_step: int | None = None,
    final_n: int = 1000,
) -> Path:
    """Trains the recipe `name` into `out_dir`, writes the final files there and returns it.

    steps, seed, mix: replace the recipe's. resume: continue from `state.safetensors` if there is one.
    stop_step: end early (0 with `resume`: export the state as it is). final_n: questions a task, or windows of text,
    in the final evaluation. Ctrl-C saves the state before it leaves. Raises `ValueError` for an unknown name or task.
    """
    if name not in RECIPES:
        raise ValueError(f"name: expected one of {sorted(RECIPES)}, got {name!r}")
    if unknown := sorted(set(mix or {}) - set(TASKS)):
        raise ValueError(f"mix: {unknown} are not among the tasks {sorted(TASKS)}")
    changes = {"steps": steps, "seed": seed, "mixes": mix and ((0, mix),)}
    recipe = dataclasses.replace(RECIPES[name], **{k: v for k, v in changes.items() if v is not None})
    run = Run(recipe, Path(out_dir), resume=resume)
    saved = evaluated = time.monotonic()
    losses: list[float] = []
    try:
        while run.step < min(recipe.steps, recipe.steps if stop_step is None else stop_step):
            losses.append(run.advance())
            if run.step % LOG_STEPS == 0:
                run.log(loss=round(float(np.mean(losses)), 4), lr_scale=round(recipe.lr_scale(run.step), 3))
                losses.clear()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                run.save_state()
                saved = time.monotonic()
            if time.monotonic() - evaluated > 60 * evaluate_minutes:
                run.quick_evaluation(64)
                evaluated = time.monotonic()
    finally:
        run.save_state()
    run.finish(final_n)
    return run.out_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--mix", help="as sort=3,sudoku=2; tasks not named are left out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate-minutes", type=float, default=5.0)
    parser.add_argument("--stop-step", type=int)
    parser.add_argument("--final-n", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: the state is saved
    torch.set_num_threads(arguments.pop("threads"))
    if arguments["mix"]:
        arguments["mix"] = {k: float(v) for k, v in (pair.split("=") for pair in arguments["mix"].split(","))}
    train(arguments.pop("name"), arguments.pop("out"), **arguments)


if __name__ == "__main__":
    main()
