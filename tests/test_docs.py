"""The code of the README and of the guides runs as written, and what they say of errors is what is raised.

A page's ```python blocks share a namespace. What a page takes for granted ("a model of yours") is named above a block,
`<!-- given: name -->`, and made here. Code that cannot run, such as what a reader has now, is fenced as ```py.
"""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from published.llama import DreamAttention, DreamModel

from dlm_kernels import InvalidArgumentError
from dlm_samplers import DreamSampler, EndOfText, LLaDASampler, ModelSpec, PrefixCache, ReMDM, Threshold, probe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?:<!-- given: (?P<given>\w+) -->\n)?```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
INFO = {"python", 'python title="after"', 'python title="after, in fewer forwards"'}
OTHER = {"bash", "text", "", "py", 'py title="before"'}

pytestmark = pytest.mark.usefixtures("one_thread")


def architecture(style, kind=None, **config):
    architectures = pytest.importorskip("dlm_benches.architectures")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "tie_word_embeddings": False}
    made = getattr(architectures, f"{style}StyleConfig")(**small | config)
    return (kind or getattr(architectures, f"{style}StyleModel"))(made).eval().requires_grad_(False)


def llada():
    model = architecture("LLaDA", vocab_size=126464, mask_token_id=126336)
    return {"model": model, "input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3).long()}


def dream():
    model = architecture("Dream", vocab_size=151936, mask_token_id=151666)
    return {"model": model, "input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3).long()}


def sdar():
    model = architecture("SDAR", vocab_size=64)
    return {"model": model, "mask_id": 63, "eos_id": 2, "prompts": [[5, 6, 7, 8, 9], [5]]}


def diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers")
    return {"pipe": SimpleNamespace(scheduler=schedulers.BlockRefinementScheduler(block_length=8))}


def mdlm():
    table = torch.randn(33, 33, generator=torch.Generator().manual_seed(0))
    return {"backbone": lambda ids, sigma: table[ids], "vocab_size": 33}


def transformers():
    model = architecture("LLaDA", vocab_size=64, eos_token_id=2)
    return {"model": model, "spec": ModelSpec.of(model, hidden="model", lm_head="lm_head")}


def recognised():
    architectures = pytest.importorskip("dlm_benches.architectures")
    mixin = pytest.importorskip("transformers").GenerationMixin
    name = "LLaDAModelLM"  # of a published class
    kind = type(name, (architectures.LLaDAStyleModel, mixin), {"__module__": __name__})
    model = architecture("LLaDA", kind, vocab_size=64, eos_token_id=2)
    return {"model": model, "input_ids": torch.tensor([[7, 8, 9]])}


GIVEN = {f.__name__: f for f in (llada, dream, sdar, diffusers, mdlm, transformers, recognised)}


def blocks(page):
    return list(FENCE.finditer(page.read_text()))


@pytest.mark.parametrize("page", [p for p in PAGES if any(b["info"] in INFO for b in blocks(p))], ids=lambda p: p.name)
def test_the_code_of_a_page_runs(page, capsys):
    if page.name == "on_a_laptop.md":
        pytest.importorskip("torchao")
    names = {"__name__": "page"}
    for block in blocks(page):
        if block["given"]:
            names |= GIVEN[block["given"]]()
        if block["info"] in INFO:
            line = page.read_text()[: block.start("code")].count("\n")
            exec(compile("\n" * line + block["code"], str(page), "exec"), names)
    EXPECTED.get(page.name, lambda printed, names: None)(capsys.readouterr().out, names)


def readme(printed, names):
    assert "eqrtwy" in printed, "sorted letters"
    assert "2111" in printed, "123 + 989, lowest digit first"
    assert "approximate" in printed
    assert type(names["pipe"].scheduler).__name__ == "FusedBlockRefinementScheduler"


def index(printed, names):
    assert printed.startswith("['eqrtwy', '2111']")
    assert "[32, 32]" in printed
    assert "Sqwerty=eqrtwy" in printed


def swap(printed, names):
    assert names["samples"].shape == (4, 64)
    assert not bool((names["samples"] == 32).any())
    assert type(names["pipe"].scheduler).__name__ == "FusedBlockRefinementScheduler"
    assert names["out"].shape[0] == 2


def guarantee(printed, names):
    assert printed.startswith("text_exact approximate")
    assert "<- Threshold()" in printed


def policy(printed, names):
    assert printed.startswith("eqrtwy 8\n")


def adapter(printed, names):
    shown = next(b["code"] for b in blocks(ROOT / "docs" / "writing_an_adapter.md") if b["info"] == "text")
    assert shown.split("batch difference")[0] in printed  # what is left depends on the machine's BLAS
    assert "hides padding, the model gives real positions other logits" in printed


EXPECTED = {
    "README.md": readme,
    "index.md": index,
    "swap_the_sampler.md": swap,
    "choosing_a_guarantee.md": guarantee,
    "writing_a_policy.md": policy,
    "writing_an_adapter.md": adapter,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_says_whether_it_runs(page):
    assert {block["info"] for block in blocks(page)} <= INFO | OTHER
    assert page.read_text().count("```") == 2 * len(blocks(page)), "a fence that the tests do not see"
    assert {block["given"] for block in blocks(page)} <= {None, *GIVEN}


# What the page about errors quotes, and how to get it.


def table(ids, attention_mask=None):
    return torch.randn(9, 9, generator=torch.Generator().manual_seed(0))[ids]


def causal(ids, attention_mask=None):
    seen = ids.cumsum(1) % 9
    return table(seen)


def blind(ids, attention_mask=None):
    return table((ids + ids.sum(1, keepdim=True) + ids.shape[1]) % 9)


def published_and_blind():
    return type(
        "LLaDAModelLM", (torch.nn.Module,), {"forward": lambda self, *arguments, **keywords: blind(*arguments)}
    )()


def nan(ids, attention_mask=None):
    return table(ids) * torch.nan


SPEC = ModelSpec(mask_id=8, eos_id=0, vocab_size=9)


def sampler(model=table, spec=SPEC, **parts):
    return LLaDASampler(model, spec=spec, **parts)


def ask(prompt=((1, 2),), parts=None, model=table, spec=SPEC, **call):
    return sampler(model, spec, **(parts or {})).generate(list(prompt), **{"max_new_tokens": 4, **call})


def lean():
    model = architecture("LLaDA", vocab_size=64)
    return {"model": model, "spec": ModelSpec.of(model, hidden="model", lm_head="lm_head")}


def foreign():
    model = torch.nn.Module()
    model.model, model.lm_head, model.forward = torch.nn.Identity(), torch.nn.Linear(2, 9), table
    return LLaDASampler(model, spec=ModelSpec(mask_id=8, hidden="model", lm_head="lm_head"), cache=PrefixCache())


def eager():
    return DreamSampler(DreamModel(attention=DreamAttention), cache=PrefixCache())


def past_the_cache():
    pytest.importorskip("transformers")

    class Trunk(torch.nn.Embedding):
        def forward(self, ids, **kwargs):
            return super().forward(ids)

    model = torch.nn.Module()
    model.model, model.lm_head, model.forward = Trunk(9, 2), torch.nn.Linear(2, 9), table
    model.config, model._supports_attention_backend = SimpleNamespace(_attn_implementation="sdpa"), True
    spec = ModelSpec(mask_id=8, hidden="model", lm_head="lm_head")
    LLaDASampler(model, spec=spec, cache=PrefixCache()).generate([[1]], max_new_tokens=4)


def adapted():
    given = lean()
    given["model"].lm_head.register_forward_hook(lambda module, args, output: output)
    LLaDASampler(**given)


def no_kernels():
    from dlm_kernels import dispatch

    missing = {name: (False, "not here") for name in dispatch.BACKENDS if name != "reference"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "backend_status", lambda name: missing.get(name, (True, "")))
        patch.setattr(dispatch, "_ANNOUNCED", set())
        dispatch._automatic.__wrapped__("score_tokens", "cpu")


class Streamer:
    def put(self, value): ...
    def end(self): ...


TROUBLE = {
    "mask_id is missing": lambda: LLaDASampler(table),
    "EndOfText needs eos_id": lambda: LLaDASampler(table, mask_id=8, stopping=[EndOfText()]),
    "model must return logits or an object with .logits": lambda: ask(model=lambda ids: (table(ids),)),
    "is outside the vocabulary": lambda: ask([[1, 9]]),
    "the description says every position sees every other": lambda: probe(causal, SPEC),
    "hides padding, the model gives real positions other logits beside it": lambda: probe(blind, SPEC),
    "the model cannot ignore padding": lambda: ask(
        [[1], [1, 2]], spec=ModelSpec(mask_id=8, vocab_size=9, attention_mask="none")
    ),
    "its code ignores the mask": lambda: ask([[1], [1, 2]], model=published_and_blind()),
    "has padding in the middle of row": lambda: sampler().generate(
        torch.ones(1, 3).long(), attention_mask=torch.tensor([[1, 0, 1]])
    ),
    "streamer works for a single row": lambda: ask([[1], [2]], streamer=Streamer()),
    "model: NaN logits in row": lambda: ask(model=nan),
    "steps is for policies on a fixed schedule": lambda: ask(parts={"policy": Threshold()}, steps=2),
    "steps must be a multiple of the number of blocks": lambda: ask(block_length=2, steps=3),
    "EndOfText needs final tokens": lambda: sampler(remask=ReMDM("cap"), stopping=[EndOfText()]),
    "needs logits of the whole canvas, so it goes without cache=": lambda: LLaDASampler(
        **lean(), cache=PrefixCache()
    ).generate([[1]], cfg_scale=1.0),
    "scores hidden states: give spec=ModelSpec(..., hidden='model', lm_head='lm_head')": lambda: sampler(
        cache=PrefixCache()
    ),
    "does not attend through transformers' attention interface": foreign,
    "does not attend through torch.nn.functional.scaled_dot_product_attention": eager,
    "attends past the cache": past_the_cache,
    "that does more than multiply by a plain matrix": adapted,
    "dlm_kernels falls back to the": no_kernels,
}


def test_the_page_about_errors_quotes_what_is_tested_here():
    quoted = re.findall(r"^\*\*`(.+)`\*\*$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.M)
    assert quoted == list(TROUBLE)


@pytest.mark.parametrize("message", TROUBLE)
def test_errors_are_what_the_page_says(message):
    warns = message in list(TROUBLE)[-2:]
    expected = pytest.warns(RuntimeWarning, match=re.escape(message))
    with expected if warns else pytest.raises(InvalidArgumentError, match=re.escape(message)):
        TROUBLE[message]()


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    pages = {page.stem for page in (tmp_path / "site").glob("*.html")} - {"404"}
    assert pages == {page.stem for page in (ROOT / "docs").glob("*.md")}
