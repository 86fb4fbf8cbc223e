"""Models whose logits are exact functions of a row's tokens, whatever else is in the batch."""

from types import SimpleNamespace

import torch

MODULUS = 2**31 - 1


class TableModel:
    """Logits are rows of a fixed table, picked by an integer hash of the whole row, the position and its token.

    Integer arithmetic and a gather: the same bits alone, in any batch, with any padding. Padding is honoured: `attention_mask`
    may be None, "full", [B, L] or [B, 1, L, L]; positions count from the first real token.
    """

    def __init__(self, seed, vocab=23, rows=997, low=1.0, high=9.0, eos=None, mask=None):
        generator = torch.Generator().manual_seed(seed)
        self.vocab = vocab
        self.mask = vocab - 1 if mask is None else mask
        self.config = SimpleNamespace(mask_token_id=self.mask, eos_token_id=eos, vocab_size=vocab)
        scale = low + (high - low) * torch.rand(rows, 1, generator=generator)
        self.table = torch.rand(rows, vocab, generator=generator) * scale
        self.calls = 0
        self.rows_seen = 0

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        self.calls += 1
        self.rows_seen += tokens.shape[0]
        if attention_mask is None or isinstance(attention_mask, str):
            valid = torch.ones_like(tokens)
        elif attention_mask.ndim == 4:
            valid = attention_mask[:, 0].diagonal(dim1=1, dim2=2).long()
        else:
            valid = attention_mask.long()
        place = valid.cumsum(1)
        local = ((tokens * 7919 + 13) * 104729 + place * 1299709) % MODULUS
        context = (local * valid).sum(1, keepdim=True) % MODULUS
        picked = ((local * 31 + context * 17) % MODULUS) % self.table.shape[0]
        return SimpleNamespace(logits=self.table[picked].clone())


class SpikeModel(TableModel):
    """A table model that is sure of itself: one tall entry a row, so that threshold policies commit several at once."""

    def __init__(self, seed, height=6.0, **kwargs):
        super().__init__(seed, **kwargs)
        generator = torch.Generator().manual_seed(seed + 1)
        rows = torch.arange(self.table.shape[0])
        winner = torch.randint(self.vocab - 1, rows.shape, generator=generator)
        self.table[rows, winner] += height * torch.rand(rows.shape, generator=generator)


def keyed_gumbel(seed, request_ids, width, vocab, by_step=True):
    """f(step, shape) -> float64 [B, L, V]: the very noise that the sampler keys by (seed, request, position, step).

    by_step: False for policies that never look at a sampled token, whose noise has step 0.
    """
    from dlm_kernels.rng import gumbel, make_row_ids

    ids = make_row_ids(request_ids[:, None], torch.arange(width)[None])

    def noise(step, shape):
        assert tuple(shape) == (len(request_ids), width, vocab)
        return gumbel(torch.tensor(seed), ids, torch.tensor(step if by_step else 0), vocab).double()

    return noise


class FirmModel(SpikeModel):
    """Never changes its mind: what it says of a position depends on the prompt's first token and the position alone."""

    changes_mind_after = None

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        committed = (tokens != self.mask).sum(1, keepdim=True)
        mood = 0 if self.changes_mind_after is None else committed // self.changes_mind_after
        place = torch.arange(tokens.shape[1])
        picked = (place * 7919 + tokens[:, :1] * 104729 + mood * 1299709) % MODULUS % self.table.shape[0]
        self.calls += 1
        self.rows_seen += tokens.shape[0]
        return SimpleNamespace(logits=self.table[picked].clone())


class MoodyModel(FirmModel):
    """Says the same for some commits, then something else: drafts hold for a while."""

    changes_mind_after = 5


class FickleModel(FirmModel):
    """Keeps its favourite token for each position, and is sure of it now more, now less: only the order wavers."""

    def __call__(self, tokens, attention_mask=None, position_ids=None):
        logits = super().__call__(tokens).logits
        committed = (tokens != self.mask).sum(1, keepdim=True)
        place = torch.arange(tokens.shape[1])
        sure = 2.0 + ((place * 7919 + committed * 104729) * 1299709 % MODULUS % 97) / 20
        favourite = logits[..., : self.mask].argmax(-1, keepdim=True)
        return SimpleNamespace(logits=logits.scatter_add_(-1, favourite, sure[..., None]))
