"""A LoRA adapter in the sampler: train it, sample with it, switch it off, merge it.

The base is a random model with the shape of LLaDA's; the adapter learns to repeat the first number. peft wraps the model, so
`spec.hidden` gets longer. An adapted LM head is more than its matrix: the sampler says so, once, and takes the logits it gives.
"""

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from dlm_benches.architectures import LLaDAStyleConfig, LLaDAStyleModel
from dlm_samplers import LLaDASampler, ModelSpec, Threshold

NUMBERS, LENGTH = 32, 8


def train(model: torch.nn.Module, mask_id: int, steps: int = 80) -> None:
    """Masked diffusion: rows of one number, a random share of it masked, cross-entropy at the masks."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        ids = torch.randint(NUMBERS, (32, 1)).expand(-1, LENGTH)
        masked = torch.rand(ids.shape) < 0.2 + 0.7 * torch.rand(32, 1)
        masked[:, 0] = False
        logits = model(ids.masked_fill(masked, mask_id)).logits
        F.cross_entropy(logits[masked], ids[masked]).backward()
        optimiser.step()
        optimiser.zero_grad()


def main() -> None:
    torch.manual_seed(0)
    config = LLaDAStyleConfig(vocab_size=NUMBERS + 1, initializer_range=0.3, tie_word_embeddings=False)
    base = LLaDAStyleModel(config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    train(model, config.mask_token_id)
    model.eval()

    spec = ModelSpec.of(model, hidden="base_model.model.model", lm_head="base_model.model.lm_head")
    adapted = LLaDASampler(model, spec=spec, policy=Threshold(0.9))
    out = adapted.generate([[5], [20]], max_new_tokens=LENGTH - 1)
    print("adapted:", *out.sequences[0].tolist())
    with model.disable_adapter():
        print("without:", *adapted.generate([[5]], max_new_tokens=LENGTH - 1).sequences[0].tolist())

    merged = model.merge_and_unload()
    again = LLaDASampler(merged, policy=Threshold(0.9)).generate([[5], [20]], max_new_tokens=LENGTH - 1)
    print("merged, the same tokens:", torch.equal(again.sequences, out.sequences))


if __name__ == "__main__":
    main()
