"""Every public method, read from its file: the one place where a method says what it is."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import optax_sam
from docs.derived.exports import public_names
from optax_sam.citation import Paper, papers, sections


@dataclasses.dataclass(frozen=True)
class Method:
    """A public function of `optax_sam/methods`.

    Attributes:
      name: of the function.
      file: where it stands, without the suffix.
      function: itself.
    """

    name: str
    file: str
    function: Callable[..., Any]

    @property
    def makes_a_method(self) -> bool:
        """Whether it is a method, not a helper of one such as `is_normalization`."""
        return inspect.signature(self.function).return_annotation is optax_sam.SharpnessAware

    @property
    def sections(self) -> dict[str, str]:
        """Of its docstring, each in one line."""
        found = sections(self.function.__doc__ or "")
        return {name: " ".join(text.split()) for name, text in found.items()}

    @property
    def title(self) -> str:
        """As its paper writes it: what stands before the first colon."""
        return self.sections[""].split(":")[0]

    @property
    def gist(self) -> str:
        """What it does, in one sentence: what stands behind the first colon."""
        line = (self.function.__doc__ or "").split("\n\n")[0]
        return " ".join(line.partition(": ")[2].split())

    @property
    def papers(self) -> tuple[Paper, ...]:
        """Those of its References."""
        return papers(self.function.__doc__ or "")

    @property
    def call(self) -> str:
        """How it is called: what it needs, then its first arguments, three in all."""
        parameters = list(inspect.signature(self.function).parameters.values())
        needed = [p for p in parameters if p.default is p.empty]
        others = [p for p in parameters if p.default is not p.empty and p.name not in ("seed", "strata")]
        shown = [*needed, *others][: max(3, len(needed))]
        names = [f"{p.name}=" if p.kind is p.KEYWORD_ONLY else p.name for p in parameters if p in shown]
        return f"{self.name}({', '.join(names + ['...'] * (len(needed + others) > len(shown)))})"

    @property
    def cost(self) -> tuple[str, str]:
        """Gradients of a step, and buffers: the two halves of the first sentence of its Cost."""
        sentence = re.split(r"\.(?:\s|$)", self.sections.get("Cost", ""))[0]
        gradients, _, buffers = sentence.partition("; ") if "(" not in sentence else _halves(sentence)
        gradients = re.sub(r" \([^)]{20,}\)", "", gradients)
        gradients = re.sub(r" gradients?( per step)", r"\1", gradients, count=1)
        gradients = re.sub(r"^([\w ./+]+?) gradients and ", r"\1 and ", gradients).replace(" per step", "")
        for word, number in {"no": 0, "one": 1, "two": 2, "three": 3}.items():
            buffers = re.sub(rf"\b{word} parameter-sized buffers?( between steps)?", str(number), buffers)
        return gradients, buffers

    @property
    def needs(self) -> str:
        """What stands behind "It needs" in its Returns."""
        found = re.search(r"It needs ([^.]*)\.", self.sections.get("Returns", ""))
        words = found[1] if found else ""
        return words.replace("an oracle", "oracle").replace("losses of single examples", "losses")


def _halves(sentence: str) -> tuple[str, str, str]:
    """Around the first semicolon that is in no brackets."""
    depth = 0
    for place, sign in enumerate(sentence):
        depth += (sign == "(") - (sign == ")")
        if sign == ";" and not depth:
            return sentence[:place], "; ", sentence[place + 2 :]
    return sentence, "", ""


def all_methods() -> list[Method]:
    """Every public function of `optax_sam/methods`, exported or not yet."""
    found = []
    for file, names in public_names().items():
        module = importlib.import_module(f"optax_sam.methods.{file}")
        found += [Method(name, file, getattr(module, name)) for name in names]
    for method in found:  # the row of a new method in the registry names it as users will
        if not hasattr(optax_sam, method.name):
            setattr(optax_sam, method.name, method.function)
    return found
