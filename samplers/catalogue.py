"""The table of all plug-ins in docs/methods.md: `python -m dlm_samplers.catalogue docs/methods.md` writes it anew."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import dlm_samplers
from dlm_samplers.caches import Cache
from dlm_samplers.lengths import LengthRule
from dlm_samplers.parts import Part
from dlm_samplers.policies import Policy
from dlm_samplers.remask import Remask
from dlm_samplers.stopping import StoppingRule
from dlm_samplers.verify import Verify

BEGIN, END = "<!-- generated: python -m dlm_samplers.catalogue docs/methods.md -->", "<!-- end of generated -->"
KINDS: dict[type[Part], str] = {
    Policy: "Policies: what commits",
    Cache: "Caches: what a forward computes",
    Remask: "Remasking: what is taken back or replaced",
    StoppingRule: "Stopping: when a row is done",
    LengthRule: "Length: how long a row gets",
    Verify: "Verification: several steps in one forward",
}

HEADER = ("| class | what it does | source | preserves | because |", "|---|---|---|---|---|")


def parts() -> Iterator[tuple[type[Part], type[Part]]]:
    """(kind, class) of every plug-in that `dlm_samplers` exports, by kind and name."""
    exported = sorted(
        (cls for cls in vars(dlm_samplers).values() if inspect.isclass(cls)), key=lambda cls: cls.__name__
    )
    for kind in KINDS:
        for cls in exported:
            if issubclass(cls, kind) and not inspect.isabstract(cls) and hasattr(cls, "guarantee"):
                yield kind, cls


def markdown() -> str:
    """The generated section."""
    lines: list[str] = []
    last = None
    for kind, cls in parts():
        if kind != last:
            lines += [
                "",
                f"### {KINDS[kind]}",
                "",
                "| class | what it does | source | preserves | because |",
                "|---|---|---|---|---|",
            ]
            last = kind
        doc = inspect.cleandoc(cls.__doc__ or "")
        papers = list(dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", doc)))
        links = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers)
        settings = ", ".join(_setting(entry) for entry in fields(cls))  # type: ignore[arg-type]
        cells = (f"`{cls.__name__}({settings})`", _summary(doc), links, str(cls.guarantee), cls.promise)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([BEGIN, *lines, "", END])


def _setting(entry: object) -> str:
    default = entry.default  # type: ignore[attr-defined]
    factory = entry.default_factory  # type: ignore[attr-defined]
    name = entry.name  # type: ignore[attr-defined]
    if default is not MISSING:
        return f"{name}={default.__name__ if inspect.isfunction(default) else repr(default)}"
    return name if factory is MISSING else f"{name}={factory()}"


def _summary(doc: str) -> str:
    """The first sentence, without the source."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z0-9)])\.(?=\s|$)", re.sub(r"\s*\([^()]*\d{4}\.\d{5}[^()]*\)", "", paragraph))[0]
    return sentence.rstrip(".")


def rewritten(page: str) -> str:
    """The page with its generated section made anew. Raises ValueError where it has none."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no section from {BEGIN!r} to {END!r}")
    return page[: page.index(BEGIN)] + markdown() + page[page.index(END) + len(END) :]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(rewritten(path.read_text()))
