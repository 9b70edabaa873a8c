"""From the equations of a docstring to LaTeX: ``e = rho g / ||g||`` becomes a fraction.

The site shows the docstrings of the methods so (`docs/conf.py`). In a terminal they stay as they are written.
"""

import re
from collections.abc import Iterator

GREEK = set("alpha beta gamma delta epsilon eta theta mu pi rho sigma".split())
BIG = {
    "grad": r"\nabla",
    "sum": r"\sum",
    "max": r"\max",
    "min": r"\min",
    "log": r"\log",
    "exp": r"\exp",
    "cos": r"\cos",
}
SUBSCRIPTED = GREEK | {"sum", "mean"}
OPERATORS = {"mean", "std", "sign", "clip", "int", "softmax", "Bernoulli"}
SIGNS = {
    "<-": r"\leftarrow",
    "<=": r"\le",
    ">=": r"\ge",
    "==": "=",
    "~": r"\sim",
    "%": r"\bmod",
    "..": r", \ldots,",
}
CLOSING = {"(": ")", "[": "]", "||": "||", "|": "|", "<": ">"}
BRACKETS = {
    "(": r"\left( {} \right)",
    "[": r"\left[ {} \right]",
    "||": r"\lVert {} \rVert",
    "|": r"\lvert {} \rvert",
    "<": r"\langle {} \rangle",
}
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<name>[A-Za-z][A-Za-z0-9]*(?:_(?:\{[^}]*\}|\w+))?(?:'|[+-](?=[\s|]|$))?)|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<sign>\|\||<-|<=|>=|==|\.\.|[-+=~%,<>|()\[\]/^])"
)
SPAN = re.compile(r"`+([^`]+)`+")


def rendered(docstring: list[str]) -> list[str]:
    """A method's docstring: what is code before its sections becomes math, each clause an item."""
    text = "\n".join(docstring)
    head, *sections = re.split(r"^(?=(?:Args|Returns|Cost):)", text, maxsplit=1, flags=re.MULTILINE)
    title, *ideas = head.strip().split("\n\n")
    idea, equations = ideas[:1], ideas[1:]
    shown = [title, *map(with_math, idea), *("\n".join(map(with_math, items(each))) for each in equations)]
    return "\n\n".join([*shown, *sections]).splitlines()


def items(paragraph: str) -> list[str]:
    """The clauses of a paragraph as items of a list; one alone is no list."""
    clauses = list(split_outside(" ".join(paragraph.split())))
    return [f"* {clause}" for clause in clauses] if len(clauses) > 1 else clauses


def split_outside(text: str) -> Iterator[str]:
    """Cuts behind semicolons and sentences, but not within code or brackets."""
    start, depth, code = 0, 0, False
    for place, sign in enumerate(text):
        code ^= sign == "`"
        depth += 0 if code else (sign == "(") - (sign == ")")
        if not code and not depth and re.match(r"[;.] ", text[place : place + 2]):
            yield text[start:place].strip()
            start = place + 2
    yield text[start:].strip().rstrip(".")


def with_math(text: str) -> str:
    """Every span of code that is an equation as math."""
    return SPAN.sub(lambda span: span[0] if is_code(span[1]) else f":math:`{latex(span[1])}`", text)


def is_code(span: str) -> bool:
    """Whether it is Python: an argument, a name of this library, a call."""
    words = r"[a-z]{2,}\w*"
    return bool(re.search(r"\w=\w|[a-z]\.[a-z]|\.\.\.|\"", span)) or (
        re.fullmatch(words, span) is not None and span not in GREEK
    )


def latex(equation: str) -> str:
    """The LaTeX of an equation as the docstrings write them.

    What stands side by side is a product. `/` divides all of it that stands before by one factor behind.
    """
    return r"\displaystyle " + terms(tokens_of(equation), None)[0]


def tokens_of(equation: str) -> list[str]:
    """Names, numbers, signs and the spaces between them."""
    tokens = [match[0] for match in TOKEN.finditer(equation)]
    if "".join(tokens) != equation:
        raise ValueError(f"{equation!r} has signs that no equation has: write it as the other docstrings do.")
    return tokens


def terms(tokens: list[str], end: str | None) -> tuple[str, list[str]]:
    """Everything up to a closing bracket, and what follows it."""
    shown, product = [], []
    while tokens:
        token, *rest = tokens
        if token == end:
            return joined(shown, product), rest
        tokens = rest
        if token.isspace():
            continue
        if token == "/":
            below, tokens = factor(tokens)
            product = [rf"\frac{{{bare(product)}}}{{{bare([below])}}}"]
        elif token in SIGNS or token in "+-=,<>" and not (token == "<" and rest and not rest[0].isspace()):
            shown, product = [joined(shown, product), SIGNS.get(token, token)], []
        else:
            one, tokens = factor([token, *tokens])
            product.append(one)
    if end is not None:
        raise ValueError(f"a bracket is not closed by {end!r}.")
    return joined(shown, product), tokens


def joined(shown: list[str], product: list[str]) -> str:
    """Signs and factors in a row; a word keeps a distance to what it multiplies."""
    spaced = [f"{each} \\," if each.startswith(r"\mathrm") else each for each in product[:-1]]
    return " ".join(filter(None, [*shown, *spaced, *product[-1:]]))


def factor(tokens: list[str]) -> tuple[str, list[str]]:
    """A name, a number, or what stands in brackets, with its arguments and its power."""
    while tokens[0].isspace():
        tokens = tokens[1:]
    token, *rest = tokens
    if token in CLOSING:
        inside, rest = terms(rest, CLOSING[token])
        shown = enclosed(token, inside)
    else:
        shown = symbol(token)
        if rest and rest[0] == "(":
            inside, rest = terms(rest[1:], ")")
            shown = r"\mathcal{N}" if token == "N" else shown
            shown = rf"\sqrt{{{inside}}}" if token == "sqrt" else shown + enclosed("(", inside)
    if rest and rest[0] == "^":
        power, rest = factor(rest[1:])
        shown += r"^{\top}" if power == "T" else f"^{{{power}}}"
    return shown, rest


def symbol(name: str) -> str:
    """A letter, a Greek one, or a word; with what stands behind its underscore below it."""
    word, sign = re.fullmatch(r"(.*?)(['+-]?)", name).groups()
    word = re.sub(r"^([a-z])(\d)$", r"\1_\2", word)
    base, _, below = word.partition("_")
    if len(base) > 1 and base not in SUBSCRIPTED:
        base, below = word, ""
    below = terms(tokens_of(below.strip("{}")), None)[0]
    return letter(base) + (f"_{{{below}}}" if below else "") + {"'": "'", "": ""}.get(sign, f"^{{{sign}}}")


def letter(base: str) -> str:
    """What stands above the line."""
    if base in BIG or base in GREEK:
        return BIG.get(base, f"\\{base}")
    if len(base) == 1:
        return base
    if re.fullmatch("d[A-Z]", base):
        return rf"\Delta {base[1]}"
    kind = "operatorname" if base in OPERATORS else "mathrm"
    return f"\\{kind}{{{base}}}".replace("_", r"\_")


def enclosed(bracket: str, inside: str) -> str:
    """In brackets, which grow with a fraction."""
    if bracket in "([" and "frac" not in inside:
        return f"{bracket}{inside}{CLOSING[bracket]}"
    return BRACKETS[bracket].format(inside)


def bare(product: list[str]) -> str:
    """The line of a fraction, without brackets that it makes needless."""
    whole = len(product) == 1 and re.fullmatch(r"\(((?:[^()]|\([^()]*\))*)\)", product[0])
    return whole[1] if whole else joined([], product)
