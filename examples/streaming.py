"""Text in a terminal while it is generated.

A streamer has `put`, called with tokens once they and all before them are final, and `end`: the protocol of transformers'
streamers. If it has `put_draft` too, that is called with the whole canvas after every step, masks included.
"""

import sys

from torch import Tensor

from dlm_benches.tiny.data_text import TextTokenizer
from dlm_benches.tiny.load import MODELS, load
from dlm_samplers import LLaDASampler, Threshold


class Terminal:
    """Shows the canvas on one line of a terminal; elsewhere, a line for every step."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.final: list[int] = []

    def put(self, value: Tensor) -> None:
        self.final += value[0].tolist()

    def put_draft(self, value: Tensor) -> None:
        text = self.tokenizer.decode(value[0])
        print(f"\r{text}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)

    def end(self) -> None:
        print(f"\nfinal: {self.tokenizer.decode(self.final)}")


def main() -> None:
    tokenizer = TextTokenizer.read(MODELS / "text" / "tokenizer.json")
    sampler = LLaDASampler(load("text"), policy=Threshold(0.5))
    prompt = tokenizer.encode("This method is called when the")
    sampler.generate([prompt], max_new_tokens=24, block_length=8, streamer=Terminal(tokenizer))


if __name__ == "__main__":
    main()
