"""Blanks anywhere in a text: the bundled text model fills them from both sides.

Each underscore is one blank token. Nothing is appended (`max_new_tokens=0`), and given tokens stay what they are.
"""

from dlm_benches.tiny.data_text import TextTokenizer
from dlm_benches.tiny.load import MODELS, load
from dlm_samplers import FixedQuota, LLaDASampler, ModelSpec

TEXTS = [
    "An exception is raised if_____ of the object.",
    "Return a_____ that contains the_____ of the object.",
    "A function definition is a_____ that binds the name.",
]


def main() -> None:
    model = load("text")
    tokenizer = TextTokenizer.read(MODELS / "text" / "tokenizer.json")

    def encode(text: str) -> list[int]:
        given = [tokenizer.encode(part) for part in text.split("_")]
        return [token for part in given for token in (*part, tokenizer.mask)][:-1]

    # A blank is a piece of the line: neither its end nor the text's. Nor is it a mask.
    never = (tokenizer.mask, tokenizer.eos, *tokenizer.encode("\n"))
    spec = ModelSpec.of(model, suppressed_ids=never)
    # One token a forward, the surest first, over the whole text at once: no blocks from left to right.
    sampler = LLaDASampler(model, spec=spec, policy=FixedQuota("confidence", tokens_per_step=1))
    prompts = [encode(text) for text in TEXTS]
    out = sampler.generate(prompts, max_new_tokens=0, block_length=None)
    for text, prompt, row, forwards in zip(TEXTS, prompts, out.sequences, out.nfe, strict=True):
        print(text)
        print(f"{tokenizer.decode(row[: len(prompt)])}  [{int(forwards)} forwards]\n")


if __name__ == "__main__":
    main()
