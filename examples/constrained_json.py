"""JSON that always parses, from a model that writes in any order: a grammar as a logits processor.

The grammar is an automaton over the tokenizer's pieces. A token is allowed at a position if some completion of the canvas
that has it there is accepted: the states that can be reached from the left, and from which the right end can be reached.
One token commits a forward, since two tokens that are each possible need not be possible together.
"""

import json
import string

import torch
from torch import Tensor

from dlm_benches.tiny.data_text import TextTokenizer
from dlm_benches.tiny.load import MODELS, load
from dlm_samplers import FixedQuota, LLaDASampler

WORDS = string.ascii_letters + " .,"
PROMPT = "The description of a function as an object: "
# A string stands for itself; (characters,) for one or more of them.
FORM = ['{"line": ', ("123456789",), ', "name": "', (string.ascii_lowercase,), '", "text": "', (WORDS,), '"}']


class Grammar:
    """`processor(tokens [B, L], logits [B, L, V]) -> logits`, -inf where a token leaves the form; prompts of one length."""

    def __init__(self, form: list, tokenizer: TextTokenizer, start: int) -> None:
        steps: list[dict[str, int]] = [{}]  # state -> character -> state
        for part in form:
            for allowed in part if isinstance(part, str) else (part[0],):
                steps[-1] |= dict.fromkeys(allowed, len(steps))
                steps.append(dict.fromkeys(allowed, len(steps)) if isinstance(part, tuple) else {})
        states, vocabulary = len(steps), tokenizer.mask + 1
        self.arrives = torch.zeros(vocabulary, states, states, dtype=torch.bool)  # token, from, to
        for token, piece in enumerate(tokenizer.pieces):
            for state in range(states):
                end: int | None = state
                for character in piece:
                    end = None if end is None else steps[end].get(character)
                if end is not None:
                    self.arrives[token, state, end] = True
        self.arrives[tokenizer.eos, -1, -1] = True  # the end of text, once the form is complete, and nothing after it
        self.arrives[tokenizer.mask] = self.arrives.any(0)  # a mask may become anything
        self.start = start

    def __call__(self, tokens: Tensor, logits: Tensor) -> Tensor:
        moves = self.arrives[tokens[:, self.start :]].float()  # [B, n, S, S]
        rows, length, states, _ = moves.shape
        before = [torch.eye(states)[:1].expand(rows, states)]
        after = [torch.eye(states)[-1:].expand(rows, states)]
        for place in range(length):
            before.append(((before[-1][:, None] @ moves[:, place])[:, 0] > 0).float())
            after.append(((moves[:, length - 1 - place] @ after[-1][..., None])[..., 0] > 0).float())
        left, right = torch.stack(before[:-1], 1), torch.stack(after[-2::-1], 1)
        possible = torch.einsum("bls,vst,blt->blv", left, self.arrives.float(), right) > 0
        logits[:, self.start :] = logits[:, self.start :].masked_fill(~possible, -torch.inf)
        return logits


def main() -> None:
    tokenizer = TextTokenizer.read(MODELS / "text" / "tokenizer.json")
    prompt = tokenizer.encode(PROMPT)
    sampler = LLaDASampler(load("text"), policy=FixedQuota(tokens_per_step=1))
    out = sampler.generate(
        [prompt] * 4,
        max_new_tokens=48,
        temperature=0.8,
        top_k=20,
        logits_processor=Grammar(FORM, tokenizer, start=len(prompt)),
    )
    for row in out.completions:
        print(json.dumps(json.loads(tokenizer.decode(row))))


if __name__ == "__main__":
    main()
