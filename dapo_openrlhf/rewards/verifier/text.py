"""Normalises an answer's text: removes what does not change its meaning, such as decoration, spaces, variants of signs.

Every pattern here runs once over the text and never looks back further than a few characters, so the time is linear.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from dapo_openrlhf.rewards.verifier.phrases import without_phrases

_BEFORE_NFKC = str.maketrans(
    {sign: "-" for sign in "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"}
    | {sign: f"\\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)}
    | {"…": r"\ldots ", "⋯": r"\ldots ", "′": "'", "″": '"', "‴": "'''", "’": "'", "‘": "'", "”": '"', "“": '"'}
    | {"º": "°", "˚": "°", "，": ",", "、": ",", "。": ".", "∶": ":", "µ": "\\mu ", "ϕ": "\\phi ", "ℓ": "l"}
)
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho _ sigma tau upsilon phi chi psi omega"
_SIGNS = str.maketrans(
    {chr(0x3B1 + index): f"\\{name} " for index, name in enumerate(_GREEK.split()) if name != "_"}
    | {chr(0x391 + 0x3C6 - 0x3B1): r"\Phi ", "Γ": r"\Gamma ", "Δ": r"\Delta ", "Ω": r"\Omega ", "Θ": r"\Theta ", "Σ": r"\Sigma "}
    | {"⁄": "/", "÷": "/", "∕": "/", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*"}
    | {"∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv "}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "ø": r"\emptyset ", "Ø": r"\emptyset "}
    | {"±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∠": r"\angle ", "∖": r"\setminus ", "∨": r"\lor ", "∧": r"\land "}
    | {"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ", "∣": "|"}
    | {"→": r"\to ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "⊙": r"\odot ", "△": r"\triangle "}
)  # fmt: skip
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉ₙ]+")
_VULGAR = re.compile("(?<=[0-9])(?=[¼½¾⅐-⅞])")

_TEX = re.compile(r"\\[a-zA-Z]+\*?|\\.|[{}]|[^\\{}]+|\\", re.DOTALL)
_WRAPPERS = frozenset(
    [
        "text",
        "textbf",
        "textit",
        "textrm",
        "textsf",
        "texttt",
        "textnormal",
        "textup",
        "emph",
        "mathrm",
        "mathbf",
        "mathit",
        "mathsf",
        "mathtt",
        "mathnormal",
        "boldsymbol",
        "bold",
        "bm",
        "mbox",
        "hbox",
        "operatorname",
        "underline",
        "boxed",
        "fbox",
        "ensuremath",
        "rm",
        "bf",
        "it",
        "tt",
        "sf",
        "style",
    ]
)
_WITH_ARGUMENT = frozenset(
    [
        "textcolor",
        "color",
        "colorbox",
        "hspace",
        "vspace",
        "phantom",
        "hphantom",
        "vphantom",
        "label",
        "tag",
        "mspace",
        "kern",
    ]
)
_NOTHING = frozenset(
    [
        "left",
        "right",
        "big",
        "Big",
        "bigg",
        "Bigg",
        "bigl",
        "bigr",
        "Bigl",
        "Bigr",
        "biggl",
        "biggr",
        "Biggl",
        "Biggr",
        "bigm",
        "Bigm",
        "middle",
        "displaystyle",
        "textstyle",
        "scriptstyle",
        "limits",
        "nolimits",
        "large",
        "Large",
        "LARGE",
        "huge",
        "Huge",
        "small",
        "tiny",
        "normalsize",
        "scriptsize",
        "footnotesize",
        "bfseries",
        "itshape",
        "rmfamily",
        "mathstrut",
        "strut",
        "nonumber",
        "notag",
        "displaylimits",
    ]
)
_SPACES = frozenset(
    ["checkmark", "quad", "qquad", "thinspace", "enspace", "medspace", "thickspace", "hfill", "space", "nobreakspace"]
)
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge", "leqslant": "le",
    "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots",
    "dotsb": "ldots", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "ast": "*", "degree": "°", "infin": "infty", "lbrace": "\\{",
    "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "colon": ":", "bar": "overline", "smallsetminus": "setminus",
    "backslash": "setminus", "wedge": "land", "vee": "lor", "prime": "'", "bigcup": "cup", "bigcap": "cap", "iff": "Leftrightarrow",
    "R": "mathbb{R}", "Reals": "mathbb{R}", "reals": "mathbb{R}", "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta",
    "div": "/", "slash": "/", "colonequals": "=", "textdollar": "\\$", "textdegree": "°", "percent": "%", "overrightarrow": "vec",
}  # fmt: skip
_LITERAL = frozenset("<>|*°:[]()'/=%")
_TYPED_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|rho|sigma|tau|phi|chi|omega|"
    "Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega"
)
"""Letters whose names are read without a backslash; ``psi`` is a unit too, and ``mu``, ``nu``, ``xi`` are products."""

_REPLACED = (
    (re.compile(r"\{, ?\}"), ","),
    (re.compile(r"(?<=\d) ?[xX] ?(?=10 ?\^)"), r"\\times "),
    (re.compile(r"(?<![A-Za-z\\])log ?(2|10|[3-9])(?= ?\()"), r"\\log_{\1}"),
    (re.compile(r"^(\d{1,4}) ?C ?(\d{1,4})$"), r"\\binom{\1}{\2}"),
    (
        re.compile(
            r"(?<=\d) ?\\frac ?\{ ?(m|km|cm|ft|kg|miles?|meters?|feet|dollars?|gallons?|liters?) ?\} ?\{ ?(s|h|hr|hours?|min|minutes?|sec|seconds?|days?)( ?\^ ?\{?[23]\}?| squared)? ?\}$"
        ),
        r" \1/\2\3",
    ),
    (re.compile(r"^0b([01]+)$"), r"\1_{2}"),
    (re.compile(r"^0x([0-9A-Fa-f]+)$"), r"\1_{16}"),
    (re.compile(r"^\\overline ?\{ ?(\w+) ?\} ?(?=_)"), r"\1"),
    (re.compile(r"(?<=[\dA-F)])_ ?\{ ?\((\d{1,2})\) ?\}$"), r"_{\1}"),
    (re.compile(r" ?\( ?mod ?(\w{1,9}) ?\)$"), r"\\pmod{\1}"),
    (re.compile(r"\\pmod ?(\w)(?!\w)"), r"\\pmod{\1}"),
    (re.compile(r"(?<=\d )(ft|in|yd|oz|lbs?|hrs?|min|sec)\.(?= \d|$)"), r"\1"),
    (re.compile(r"(\\mathbb ?\{R\}) ?[-/] ?(?=\\\{)"), r"\1\\setminus "),
    (re.compile(r"^(\([^(),]*,[^()]*\))\^ ?\{? ?(?:T|\\top) ?\}?$"), r"\1"),
    (re.compile(r"(?<=\d) ?\\mu ?(m|s|g|F|C|A)$"), r" u\1"),
    (re.compile(r"(?<=\d )(mm|cm|km|m|kg|g|J|N|W|mol|rad) (s|m|kg|mol) ?\^ ?\{-([123])\}$"), r"\1/\2^\3"),
    (re.compile(r"(?<![A-Za-z\\])cbrt ?(?=[({\d])"), r"\\sqrt[3]"),
    (re.compile(r"(?<![\w\\])([A-Za-z])(\d)(?= ?=)"), r"\1_\2"),
    (re.compile(r"(?:\{\})?[_^]\{?(\d+)\}? ?C ?_\{?(\d+)\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"° ?(C|F)(?:elsius|ahrenheit)?$"), r"°\1"),
    (re.compile(r"\^ ?\{ ?(?:\\circ|°) ?\}|\^ ?(?:\\circ(?![a-zA-Z])|°)|(?<=[0-9}]) ?\\circ(?![a-zA-Z])"), "°"),
    (re.compile(r"\^ ?\{ ?(?:'|\\prime) ?\}|\^'"), "'"),
    (re.compile(r"\\frac ?(\d) ?(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac ?(\d) ?\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac ?\{[^{}]{0,60}\}) ?(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt ?(\[\d+\])? ?(\d+)"), r"\\sqrt\1{\2}"),
    (re.compile(r"(\d|\}) ?\*\*(?= ?\d|\()|(?<=[\w)}]) ?\*\*(?= ?[\w({\\-])"), r"\1^"),
    (re.compile(r"(?<![A-Za-z\\])(pi|[iI]nfinity|infty|sqrt)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(rf"(?<![A-Za-z\\])({_TYPED_GREEK})(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\\[iI]nfinity(?![a-zA-Z])|(?<![A-Za-z\\])inf(?![A-Za-z])|(?<![A-Za-z\\])oo(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\not ?=|!=|=/=|<>|/="), r"\\ne "),
    (re.compile(r"<=|=<|≦"), r"\\le "),
    (re.compile(r">=|=>|≧"), r"\\ge "),
    (re.compile(r"(?<![A-Za-z\\])(?:union|U)(?![A-Za-z])(?= ?[\[(\\])"), r"\\cup "),
    (re.compile(r"(?<!\.)\.{3,}(?= ?,)|(?<=,) ?\.{3,}"), r"\\ldots "),
    (re.compile(r"(?<=\d) ?(?:a\.m\.?|AM)$"), " am"),
    (re.compile(r"(?<=\d) ?(?:p\.m\.?|PM)$"), " pm"),
    (re.compile(r"\\mathbb ?([A-Z])"), r"\\mathbb{\1}"),
)  # fmt: skip
_BOUND = re.compile(r"[<>\u2260]|\\(?:le|ge|ne|cup|cap|in|mathbb)(?![a-zA-Z])")
_OR = re.compile(r",? (?:or|\\lor) ", re.IGNORECASE)
_AND = re.compile(r",? (?:and|\\land|together with|as well as) ", re.IGNORECASE)
_BOLD = re.compile(r"(?<![\w)}])\*\*(?=[^\s*])|(?<=[^\s*])\*\*(?![\w({\\-])|\*\*(?=\s*$)")
_NO_DELIMITER = re.compile(r"\\(?:left|right) ?\.")
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z])(?<![0-9],) |(?<=[0-9],) (?![0-9])| (?![0-9A-Za-z])")
_AFTER_COMMAND = re.compile(r"(\\[a-zA-Z]+) (?![a-zA-Z])")
_CHOICE = re.compile(r"\(([A-Za-z])\)|([A-Z])\)")
_GOES_ON = re.compile(r"(?<![\d.,])(\d*\.\d{0,12}?)(?=(\d)\2\2|(\d{2,8}?)\3)(?:\2+|(?:\3)+)(?:\.{3,}| ?\\ldots)")
"""A decimal whose digits begin to recur, such as ``0.333...``."""
_FORMULA = re.compile(r"(?=[A-Za-z]*\d)(?:[A-Z][a-z]?(?:[2-9]|[1-9]\d)?){2,10}")
"""A chemical formula in plain text, such as ``C6H12``."""
_FORMULA_DIGITS = re.compile(r"\d+")
_DOT_OVER = re.compile(r"\\dot(?: ?\{(\d+)\}| ?(\d))")


@functools.lru_cache(maxsize=64)
def canonical(answer: str) -> str:
    """An answer's text in normalised form.

    A space stays where removing it would join two words or two numbers: ``3 4`` is not 34, ``1, 234`` not 1234.
    """
    text = _VULGAR.sub(" ", answer.translate(_BEFORE_NFKC))
    text = _SUPERSCRIPT.sub(lambda raised: f"^{{{raised[0]}}}", text)
    text = _SUBSCRIPT.sub(lambda lowered: f"_{{{lowered[0]}}}", text)
    text = unicodedata.normalize("NFKC", text).translate(_BEFORE_NFKC).translate(_SIGNS)
    if not (text.isascii() and text.isprintable()):
        text = "".join(" " if unicodedata.category(sign)[0] == "C" else sign for sign in text)
    text = _BOLD.sub("", text) if "**" in text else text
    text = _NO_DELIMITER.sub(" ", text)
    text = " ".join(_without_macros(text).replace("`", " ").replace("~", " ").split())
    text = _without_math_signs(text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _recurring(text) if "\\dot" in text else text
    if "..." in text or "\\ldots" in text:
        text = _GOES_ON.sub(lambda found: f"{found[1]}\\overline{{{found[2] or found[3]}}}", text)
    text = _FORMULA_DIGITS.sub(r"_{\g<0>}", text) if _FORMULA.fullmatch(text) else text
    text = without_phrases(text)
    bounds = _BOUND.search(text) is not None
    text = _OR.sub(r" \\lor " if bounds else ",", f" {text} ")
    text = _AND.sub(r" \\land " if bounds else ",", text)
    text = (
        _LOOSE_SPACE.sub("", _AFTER_COMMAND.sub(r"\1", " ".join(text.split())))
        .strip("*_")
        .lstrip("= ")
        .rstrip(".,;:*_ ")
        .removesuffix("\\")
    )
    if (text.count('"') == 1 and "'" not in text) or text[:1] == text[-1:] == '"':
        text = text.strip('"').strip(" ")
    choice = _CHOICE.fullmatch(text)
    return choice[1] or choice[2] if choice else text


def _without_macros(text: str) -> str:
    """TeX without fonts, sizes, colours and spacing; the argument of a font command stays."""
    if "\\" not in text:
        return text
    found: list[str] = []
    closings: list[str] = []
    """What the closing brace of each open brace is replaced by."""
    tokens = _TEX.findall(text)
    wraps, position = False, 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        name = token[1:].rstrip("*") if token[0] == "\\" else ""
        if token == "{":
            closings.append(" " if wraps else "}")
            found.append(" " if wraps else "{")
        elif token == "}":
            found.append(closings.pop() if closings else "}")
        elif name in _WRAPPERS or name in _WITH_ARGUMENT:
            position = _after_group(tokens, position) if name in _WITH_ARGUMENT else position
            found.append(" ")
            wraps = True
            continue
        elif wraps and token.isspace():
            continue
        else:
            found.append(_macro(token, name))
        wraps = False
    return "".join(found)


def _after_group(tokens: list[str], position: int) -> int:
    """Position after the group in braces that begins at ``position``, if one begins there."""
    depth = 0
    for index in range(position, len(tokens)):
        depth += (tokens[index] == "{") - (tokens[index] == "}")
        if depth == 0 and not tokens[index].isspace():
            return index + 1 if tokens[index] == "}" else position
    return len(tokens)


def _macro(token: str, name: str) -> str:
    if not name or token in ("\\{", "\\}", "\\\\", "\\%", "\\$"):
        return "%" if token == "\\%" else token
    if name == "&":
        return " and "
    if name == "!":
        return "\x00"
    if name in ",;:> ()[]\n" or name in _SPACES:
        return " "
    if name in _NOTHING:
        return " " if name[0] in "dtlLhHs" else "\x01"
    new = _RENAMED.get(name)
    if new is None:
        return token
    return new if new[0] == "\\" or new in _LITERAL else "\\" + new


_DOLLAR = re.compile(r"(\\?)\$")
_THIN = re.compile(r"\x00 ?")
_LEFT = re.compile(r"\x01 ?")


def _without_math_signs(text: str) -> str:
    r"""The text without ``$`` around formulas; where it is the currency of an amount, it stays as ``$``."""
    text = _LEFT.sub("", _THIN.sub("", text))
    bare = text.replace("\\$", "")
    is_money = bare.count("$") % 2 == 1 or ("$" in bare and not re.search(r"\$(?! ?[\d.])|[^\s(\[,-]\$", bare))
    text = _DOLLAR.sub(lambda sign: "\x02" if sign[1] or is_money else " ", text)
    return " ".join(text.replace("\x02", "$").split())


def _recurring(text: str) -> str:
    r"""Write ``0.\overline{123}`` for ``0.\dot{1}2\dot{3}``, which means the same."""
    dots = list(_DOT_OVER.finditer(text))
    if not dots or len(dots) > 2 or not re.search(r"\.\d*$", text[: dots[0].start()]):
        return text
    between = text[dots[0].end() : dots[-1].start()] if len(dots) == 2 else ""
    digits = (dots[0][1] or dots[0][2]) + between + ((dots[1][1] or dots[1][2]) if len(dots) == 2 else "")
    if not digits.isdigit():
        return text
    return f"{text[: dots[0].start()]}\\overline{{{digits}}}{text[dots[-1].end() :]}"
