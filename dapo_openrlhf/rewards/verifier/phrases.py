"""Replaces English phrases by signs: ``at least`` by ``\\ge``, ``no solution`` by the empty set."""

from __future__ import annotations

import re

_VERBS = (
    "costs?|takes?|took|pays?|paid|has|have|had|needs?|sold|sells?|makes?|made|earns?|earned|gets?|got|spends?|spent|weighs?|"
    "travels?|travell?ed|buys?|bought|eats?|ate|reads?|receives?|received|saves?|saved|walks?|walked|runs?|ran|requires?"
)
_RANGE = r"^(?:[a-z] (?:is |lies )?|(?:all )?(?:the )?(?:real )?numbers )?(?:between|from) (.{1,40}) (?:and|to) ([^,]{1,40}?)"
_ALL = r"^(?:all |any |every |the |the set of )*"
_REALS = r" (?:real numbers?|reals?)$"
_PHRASES = (
    (re.compile(rf"{_ALL}positive{_REALS}", re.IGNORECASE), r"(0,\\infty)"),
    (re.compile(rf"{_ALL}negative{_REALS}", re.IGNORECASE), r"(-\\infty,0)"),
    (re.compile(rf"{_ALL}non-?negative{_REALS}", re.IGNORECASE), r"[0,\\infty)"),
    (re.compile(rf"{_ALL}non-?positive{_REALS}", re.IGNORECASE), r"(-\\infty,0]"),
    (re.compile(rf"{_ALL}non-?zero{_REALS}", re.IGNORECASE), r"\\mathbb{R}\\setminus\\{0\\}"),
    (re.compile(r"^([a-z]) is (?:a )?positive(?: real)?(?: number)?$", re.IGNORECASE), r"\1>0"),
    (re.compile(r"^([a-z]) is (?:a )?negative(?: real)?(?: number)?$", re.IGNORECASE), r"\1<0"),
    (re.compile(r"^([a-z]) is non-?negative$", re.IGNORECASE), r"\1\\ge 0"),
    (re.compile(r"^([a-z]) is non-?positive$", re.IGNORECASE), r"\1\\le 0"),
    (re.compile(r"^([a-z]) is non-?zero$", re.IGNORECASE), r"\1\\ne 0"),
    (re.compile(r"^(?:all|any|every) real (?:values? of )?[a-z]$", re.IGNORECASE), r"\\mathbb{R}"),
    (re.compile(r"^([a-z]) (?:must|should|has to) be ", re.IGNORECASE), r"\1 is "),
    (re.compile(r"^(\w{1,9}) choose (\w{1,9})$"), r"\\binom{\1}{\2}"),
    (re.compile(r"^USD ?(?=\d)"), "$"),
    (re.compile(r"^(-?\$?\d[\d.,]{0,20}) ?thousand(?![a-z])"), r"\1\\times10^{3}"),
    (re.compile(r"^(-?\$?\d[\d.,]{0,20}) ?million(?![a-z])"), r"\1\\times10^{6}"),
    (re.compile(r"^(-?\$?\d[\d.,]{0,20}) ?billion(?![a-z])"), r"\1\\times10^{9}"),
    (re.compile(r"^(?:the )?(?:final |correct )?answer is:? ", re.IGNORECASE), ""),
    (
        re.compile(
            r"(?<=\d) ?\(? ?(?:in )?base ?(\d{1,2}|two|three|four|five|six|seven|eight|nine) ?\)?$", re.IGNORECASE
        ),
        r"_{\1}",
    ),
    (re.compile(r"_\{ ?base ?(\d{1,2}) ?\}", re.IGNORECASE), r"_{\1}"),
    (re.compile(r"^(\d+) to (\d+)$"), r"\1:\2"),
    (re.compile(r"^(?:the |an |a )?(?:(?:closed|open|half-open) )?(?:interval|set) (?=[\[(]|\\\{)", re.IGNORECASE), ""),
    (re.compile(r"(?<=[\d}]) only$|^only (?=[-\d\\])", re.IGNORECASE), ""),
    (re.compile(r"^([^ a-zA-Z]{1,20}) or (?:more|greater|above|higher)$"), r"\\ge \1"),
    (re.compile(r"^([^ a-zA-Z]{1,20}) or (?:less|fewer|below|lower)$"), r"\\le \1"),
    (
        re.compile(r"^(?:up to|a maximum of) |(?:is )?(?:no|not) (?:greater|larger|higher) than ", re.IGNORECASE),
        r"\\le ",
    ),
    (re.compile(r"^a minimum of |(?:is )?(?:no|not) (?:smaller|lower|fewer) than ", re.IGNORECASE), r"\\ge "),
    (
        re.compile(
            r"(?:is )?(?:greater|more|bigger|larger) than or equal to|(?:is )?at least|(?:is )?no less than|(?:is )?not less than",
            re.IGNORECASE,
        ),
        r"\\ge ",
    ),
    (
        re.compile(
            r"(?:is )?(?:less|smaller|fewer) than or equal to|(?:is )?at most|(?:is )?no more than|(?:is )?not more than",
            re.IGNORECASE,
        ),
        r"\\le ",
    ),
    (re.compile(r"(?:is )?(?:strictly )?(?:greater|more|bigger|larger) than", re.IGNORECASE), ">"),
    (re.compile(r"(?:is )?(?:strictly )?(?:less|smaller|fewer) than", re.IGNORECASE), "<"),
    (re.compile(r"(?:is )?not equal to|does not equal", re.IGNORECASE), r"\\ne "),
    (re.compile(r"(?:is )?equal to|equals", re.IGNORECASE), "="),
    (re.compile(r"(?<=[a-z}]) (?:is|are|was|will be|would be) (?=[-+$]?[\d\\(.])", re.IGNORECASE), "="),
    (
        re.compile(rf"{_RANGE},? \(?(?:both )?(?:ends? |endpoints? )?(?:inclusive|included)\)?$", re.IGNORECASE),
        r"[\1,\2]",
    ),
    (
        re.compile(rf"{_RANGE},? \(?(?:both )?(?:ends? |endpoints? )?(?:exclusive|excluded)\)?$", re.IGNORECASE),
        r"(\1,\2)",
    ),
    (
        re.compile(
            r"^(?:[a-z] (?:is|lies) |(?:all )?(?:real )?numbers )?(?:strictly )?between (.{1,40}) and ([^,]{1,40})$",
            re.IGNORECASE,
        ),
        r"(\1,\2)",
    ),
    (re.compile(rf"(?<=[A-Za-z]) (?:{_VERBS}) (?=[-+$]?\d)", re.IGNORECASE), "="),
    (re.compile(r" is (?:the|our|my) (?:final |correct )?answer$", re.IGNORECASE), ""),
    (re.compile(r"(?<=[\d}]) of (?:the|a|an|her|his|their) (?!.*(?:number|original|total|value))[a-z ]{2,30}$"), ""),
    (re.compile(r",? ?for (?:all|any|every) [^,;=<>]{1,40}$"), ""),
    (re.compile(r"(?<=.) ?\((?:since|because) [^()]{1,60}\)$"), ""),
    (re.compile(r"^none$", re.IGNORECASE), r"\\emptyset"),
    (re.compile(r"plus or minus", re.IGNORECASE), r"\\pm "),
    (re.compile(r"negative (?=\\infty|infinity)|minus (?=\\infty|infinity)", re.IGNORECASE), "-"),
    (re.compile(r"(?:the )?square root of (\d+)", re.IGNORECASE), r"\\sqrt{\1}"),
    (
        re.compile(
            r"^(?:all|any|every) (?:real )?(?:numbers? |values? (?:of )?)?([a-z]),? (?:such that|with|where|for which|satisfying) (?=\1)"
        ),
        "",
    ),
    (re.compile(r"^(?:all|any|every) (?:real )?(?:values? of )?(?=[a-z] ?(?:[<>]|\\(?:le|ge|ne|in)(?![a-z])))"), ""),
    (
        re.compile(r"^([a-z]) (?:cannot|can not|can't|must not|may not|does not) (?:be|equal)(?: equal to)? "),
        r"\1\\ne ",
    ),
    (re.compile(r"^([a-z]) is not (?=[-\d\\])"), r"\1\\ne "),
    (re.compile(r"^[a-z] (?:is|can be|may be) (?=(?:any|all|every) real)", re.IGNORECASE), ""),
    (
        re.compile(
            r"(?:the set of )?all real numbers(?: [a-z](?![a-z]))?|(?:the )?real numbers|all reals|the reals|(?:any|every|each) real number",
            re.IGNORECASE,
        ),
        r"\\mathbb{R}",
    ),
    (
        re.compile(
            r"(?:there (?:is|are) )?no (?:real |integer |such )?(?:solutions?|roots?|values?|answers?)(?: exists?)?",
            re.IGNORECASE,
        ),
        r"\\emptyset",
    ),
    (re.compile(r"(?:the )?empty set", re.IGNORECASE), r"\\emptyset"),
    (
        re.compile(
            r"(?<=\\mathbb\{R\}),? ?(?:except|excluding|other than|but|without)(?: for| that)?(?: x ?(?:=|is not|is))?"
        ),
        r"\\setminus ",
    ),
    (
        re.compile(r"\\setminus (?:[a-z] ?= ?)?([^A-Za-z]{1,40}?),? (?:and|or) (?:[a-z] ?= ?)?([^A-Za-z]{1,20})$"),
        r"\\setminus\\{\1,\2\\}",
    ),
    (re.compile(r"^(?:real )?numbers (?=[<>]|\\(?:le|ge|ne)(?![a-z]))"), ""),
    (re.compile(r"^([a-z]) such that (?=\1)"), ""),
    (re.compile(r",? but (?=[a-z]? ?(?:[<>]|\\(?:le|ge|ne)(?![a-z])))"), " and "),
    (re.compile(r"either (?=.{1,60} or )", re.IGNORECASE), ""),
    (re.compile(r"does not exist", re.IGNORECASE), "DNE"),
)
_HAS_PHRASE = re.compile(r"(?<![\\a-z])(?:[a-z]{3}|(?:is|are|to) )", re.IGNORECASE)


def without_phrases(text: str) -> str:
    """An answer's text with phrases replaced by signs."""
    if _HAS_PHRASE.search(text):
        for pattern, replacement in _PHRASES:
            text = pattern.sub(replacement, text)
    return text
