"""How each bundled model is made: its config and what the trainer does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dlm_benches.tiny import vocab
from dlm_benches.tiny.data_text import VOCAB_SIZE, WINDOW
from dlm_benches.tiny.model import TinyConfig


@dataclass(frozen=True)
class Recipe:
    """Data, optimiser and schedule of one model. The learning rate warms up, stays, and falls to zero at the end."""

    name: str
    objective: Literal["masked-tasks", "causal-tasks", "masked-text"]
    data: str
    steps: int
    batch: int
    lr: float = 3e-3
    matrix_lr: float = 0.02
    warmup: int = 100
    decay: float = 0.4  # the last part of the steps, over which the rate falls linearly
    ema: float = 0.995
    seed: int = 0
    tight: tuple[float, float] = (0.0, 0.0)  # share of short-region batches before and during the decay
    mixes: tuple[tuple[int, dict[str, float]], ...] = ()  # (from this step on, task weights), in order

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lr_scale(self, step: int) -> float:
        """Multiplier of both learning rates at a step, from 0."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / max(1.0, self.decay * self.steps))

    def tight_at(self, step: int) -> float:
        return self.tight[0] if step < (1 - self.decay) * self.steps else self.tight[1]

    def mix_at(self, step: int) -> dict[str, float]:
        """Task weights at a step."""
        return [mix for start, mix in self.mixes if start <= step][-1]


FIRST_MIX = {"sort": 3.0, "reverse": 1.0, "copy": 0.7, "addition": 1.5, "replace": 0.8, "shuffle": 0.7, "sudoku": 2.3}
# By step 1,400 sort, reverse, copy and replace are at 97 to 100 % and addition has not begun.
SECOND_MIX = {"sort": 2.0, "reverse": 0.5, "copy": 0.4, "addition": 4.0, "replace": 0.4, "shuffle": 1.2, "sudoku": 2.5}
# Addition stays at chance until about 25,000 sums have come close together; then it is learnt in minutes.
ADDITION_MIX = {
    "sort": 1.0,
    "reverse": 0.3,
    "copy": 0.2,
    "addition": 9.0,
    "replace": 0.2,
    "shuffle": 0.6,
    "sudoku": 1.2,
}
# Read left to right, addition and Sudoku come first, and reversal, sorting and shuffling last.
CAUSAL_MIX = {"sort": 4.0, "reverse": 2.5, "copy": 0.3, "addition": 0.8, "replace": 1.5, "shuffle": 2.0, "sudoku": 1.0}
MIXES = ((0, FIRST_MIX), (1400, SECOND_MIX), (1924, ADDITION_MIX), (2300, SECOND_MIX))

TASK_DATA = (
    "generated questions, training split only (keyed hash of the prompt; Sudoku by completed grid); row = "
    "[prompt | region | PAD], region 32, 1 row in 5 answer + 1 .. 32; mask ratio uniform (0.02, 1); "
    "loss on masked region positions, EOS after the first weighted 0.1"
)

RECIPES = {
    "reasoning": Recipe("reasoning", "masked-tasks", TASK_DATA, steps=6000, batch=128, tight=(0.75, 0.25), mixes=MIXES),
    "reasoning-ar": Recipe(
        "reasoning-ar",
        "causal-tasks",
        "the same questions, mix and split as `reasoning`; loss on the answer and one EOS",
        steps=4200,
        batch=128,
        mixes=((0, ADDITION_MIX), (800, SECOND_MIX), (2030, CAUSAL_MIX)),
    ),
    "text": Recipe(
        "text",
        "masked-text",
        "prose of the language reference (pydoc_data.topics) and of the standard library's docstrings; windows of 256 "
        "tokens of a 512-piece byte-pair tokenizer; mask ratio uniform (0.02, 1), half of the rows keep a prompt of up "
        "to 128 tokens; one document in 10 held out",
        steps=1300,
        batch=16,
        matrix_lr=0.01,
    ),
}


def config_for(recipe: Recipe) -> TinyConfig:
    """The architecture of a recipe's model."""
    if recipe.objective == "masked-text":
        eos, pad, mask = VOCAB_SIZE - 3, VOCAB_SIZE - 2, VOCAB_SIZE - 1  # as TextTokenizer numbers them
        return TinyConfig(
            vocab_size=VOCAB_SIZE, mask_token_id=mask, eos_token_id=eos, pad_token_id=pad, learned_positions=WINDOW
        )
    return TinyConfig(
        vocab_size=vocab.SIZE,
        mask_token_id=vocab.MASK,
        eos_token_id=vocab.EOS,
        pad_token_id=vocab.PAD,
        learned_positions=64,
        block_length=1 if recipe.objective == "causal-tasks" else None,
    )
