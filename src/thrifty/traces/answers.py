r"""Answers: find the one that a text states, and read what stands there.

Texts come from models and may be hostile: each expression here runs in linear time.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

AnswerKind = Literal["auto", "number", "choice", "text", "math"]

MAX_LINE = 2_000
"""Characters of a line, counted from its end, in which candidates are looked for."""

_MOST_CUES = 50  # statements looked at, from the end
_FEW_WORDS, _MOST_WORDS = 3, 12  # a longer clause is a sentence, a still longer one is no answer
_NEAR = 30  # how far before a phrase an 'if' makes it a condition
_MOST_DIGITS = 200  # a longer number is compared as text

# ----------------------------------------------------------------------------------------------------------
# What answers look like in running text

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,9}(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = rf"(?:[-−+]\s?)?(?:\\?[$€£]\s?)?[-−]?(?:{_DIGITS})(?:\s?/\s?\d+(?![\d/]))?(?:\s?\\?%)?"
# A number that one of these follows is the head of an expression, not a value by itself.
_ALONE = (
    r"(?![\w\\^({/]|[.,:]\d|\s\d{1,9}/\d)"
    r"(?!\s?(?:[-+*/×·÷^=]\s?(?:[\d(\\$]|[a-z]\b)|\\(?:times|cdot|div)|(?:times|plus|minus|divided|of)\b))"
)
_FILLER = (
    r"(?:(?:indeed|therefore|thus|then|simply|just|exactly|approximately|about|roughly|around|still|again"
    r"|actually|probably|likely|now|definitely|clearly|equal to|going to be)\b,?\s){0,3}"
)

_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)(?![a-zA-Z])\s*(?P<brace>\{?)|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[-+]?\d[^\s$\\{}]*|\\[a-zA-Z]+\d*(?:\{[^{}]*\}){0,2}|[a-zA-Z](?![a-zA-Z])")
_HASHES = re.compile(r"^#### ?(?P<value>[^\s#][^\n]*)$", re.MULTILINE)
_CUE_TAIL = r"[^\n.:=?!]{0,40}?(?:\b(?:is|are|was|be|becomes|equals|remains)\b|[:=])"
_CUE_HEADING = r"^[#*_ ]{0,8}(?:(?:the|my|final|correct)\s){0,2}answer[*_ ]{0,8}\n"
_CUE = re.compile(rf"\banswers?\b{_CUE_TAIL}|{_CUE_HEADING}", re.IGNORECASE | re.MULTILINE)
_CHOICE_CUE = re.compile(rf"\b(?:answers?|options?|choices?)\b{_CUE_TAIL}|{_CUE_HEADING}", re.IGNORECASE | re.MULTILINE)
_NEGATED = re.compile(r"\b(?:not|cannot|never)\b|n't\b", re.IGNORECASE)
_CONDITION = re.compile(r"\b(?:if|whether|unless)\b[^.,:;]{0,20}$", re.IGNORECASE)
_DECORATION = re.compile(r"[\s:*_=>`\"“]*")
_SENTENCE_END = re.compile(r"[.!?;](?=[\"'”’)*\]]{0,4}(?:\s|$))|\n")
_LEADING_MATHS = re.compile(
    r"\\\((?P<inline>[^\n]{1,300}?)\\\)|\\\[(?P<display>.{1,500}?)\\\]"
    r"|\$\$(?P<block>[^$]{1,500})\$\$|\$(?=\S)(?P<dollar>[^$\n]{1,300})(?<=\S)\$(?!\d)",
    re.DOTALL,
)
_LEADING_NUMBER = re.compile(rf"{_FILLER}(?P<value>{_NUMBER}){_ALONE}", re.IGNORECASE)
_RESULT = re.compile(rf"(?:=|\\approx|≈)\s?(?P<value>{_NUMBER}){_ALONE}", re.IGNORECASE)
_LIST = re.compile(r"\[[^\[\]\n]{1,300}\]")
_ROLES = re.compile(r"(?:(?:, )?(?:and )?[A-Z][a-z]+ is an? [a-z]+){2,12}")
_TRUTH = re.compile(r"(?P<value>yes|no|true|false)\b(?=[\s*\"']*(?:[.,;!]|$))", re.IGNORECASE)
_ANY_NUMBER = re.compile(rf"(?<![\w.,/^])(?P<value>{_NUMBER})(?![a-zA-Z])")
_BOLD_NUMBER = re.compile(rf"\*\*(?P<value>{_NUMBER})(?:\*\*|\s[^*\d\n]{{0,60}}\*\*)")
# A letter is an option where it stands by itself; 'A' before a word is an article unless the word gives a reason.
_LEADING_LETTER = re.compile(
    r"(?:(?i:option|choice|letter|answer)\s)?(?:\\(?:text|textbf|mathrm|mathbf)\s?\{)?[(\[*]{0,3}(?P<letter>[A-Z])"
    r"(?=[)\]}*.:,;\n]|\s*$|\s(?:because|since|as|and|which|with|for|due|is)\b|\s[^\sa-z=+*/^-])"
)
_OPTION = re.compile(
    r"\((?P<bracketed>[A-Z])\)"
    r"|\\(?:text|textbf|mathrm|mathbf)\s?\{(?P<wrapped>[A-Z])[.):]?\}"
    r"|\*\*(?P<bold>[A-Z])[.):]?\*\*"
    r"|\b[Oo]ption\s(?P<named>[A-Z])\b"
    r"|(?<![\w('’])(?P<subject>[A-J])\sis\s(?:the\s)?(?:correct|right|best|answer)\b"
    r"|(?<![\w(])(?P<listed>[A-J])(?:\)|[.:](?=\s|$))"
    r"|(?<![\w('’])(?P<last>[A-HJ])(?=\s*\Z)"
)

_VALUE = rf"(?:\*\*)?(?<![\d.,])(?P<value>{_NUMBER})"
CANDIDATE_PATTERNS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        name: re.compile(pattern, re.IGNORECASE)
        for name, pattern in {
            # 'So the answer is 12.', 'final answer: 12': the value follows the match.
            "answer is": rf"\banswer\b{_CUE_TAIL}",
            # 'So 12 is right.', 'No, 12 is fine.'
            "value is right": rf"(?<![=+*/-])(?<![=+*/-]\s){_VALUE}(?:\*\*)?\s(?:[a-z]+\s)?is\s"
            r"(?:indeed\s|still\s|definitely\s|also\s)?"
            r"(?:right|correct|fine|confirmed|the\s(?:(?:right|correct|final)\s)?(?:answer|result))\b",
            # 'That gives 12 again.', 'But this gives 137, not 147.'
            "gives again": r"\b(?:this|that|it|which)\s(?:again\s|also\s|still\s)?"
            rf"(?:gives?|yields?|makes?|is|equals?)\s{_VALUE}(?:\*\*)?(?:\s[a-z]+)?,?\s(?:again|as\swell|too|not)\b",
            # 'Hmm, both ways give 12.'
            "both give": r"\b(?:both|all|either)(?:\s[a-z]+)?\s"
            rf"(?:gives?|yields?|leads?\sto|results?\sin|agree\son)\s{_VALUE}{_ALONE}",
            # 'Same result, 12.', 'we end up with the same answer: 12'
            "same result": r"\bsame\s(?:result|answer|value|number|total|thing)[,:;.\s-]{1,4}(?:of\s)?"
            rf"{_VALUE}{_ALONE}",
            # 'It matches, 12.', 'That confirms it: 12.'
            "matches": r"\b(?:matches|match|agrees?|confirmed|confirms\s(?:it|that)|checks\sout)[,:;\s-]{1,4}"
            rf"(?:so\s)?(?:it\sis\s|it's\s)?{_VALUE}{_ALONE}",
        }.items()
    }
)
"""Phrases by which a line states the target. Where a pattern has no group ``value``, the value follows it."""


def boxed(text: str) -> list[str]:
    r"""Return what stands in each ``\boxed{...}`` or ``\fbox{...}``, in order.

    Args:
        text: any text; ``\boxed 5`` counts as well, as in LaTeX.

    Returns:
        The contents as they are. A box within a box is part of the outer one; one that never closes is left out.
    """
    found: list[tuple[int, int]] = []
    open_braces: list[int | None] = []  # where the content of a box starts, None for any other brace
    at = 0
    while match := _BOX.search(text, at):
        at = match.end()
        if match["brace"] == "{":
            open_braces.append(at)
        elif match["brace"] == "":
            if bare := _BARE_BOX.match(text, at):
                found.append((at, at + len(bare.group().rstrip(".,;:"))))
                at = bare.end()
        elif match.group() == "{":
            open_braces.append(None)
        elif match.group() == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                while found and found[-1][0] >= start:
                    found.pop()
                found.append((start, match.start()))
    return [text[start:end] for start, end in found]


def _last_box(text: str) -> str | None:
    for content in reversed(boxed(text)):
        inner = content
        for _ in range(3):  # a box in a box in a box is as far as models go
            inner = next(reversed(boxed(inner)), inner)
        if inner.strip():
            return inner.strip()
    return None


def _bare_number(value: str) -> str:
    """A number as it was matched, without currency and stray blanks."""
    return re.sub(r"\\?[$€£]|\s|^\+", "", value).replace("−", "-").replace("\\%", "%")


def _after_decoration(rest: str) -> str:
    start = _DECORATION.match(rest)
    return rest[start.end() : start.end() + 600] if start else rest[:600]


def _clause(rest: str) -> str:
    return rest[: end.start()] if (end := _SENTENCE_END.search(rest)) else rest


def _letter_at(rest: str) -> str | None:
    match = _LEADING_LETTER.match(rest)
    return match["letter"] if match else None


def _value_at(rest: str) -> str | None:
    """The value with which a text starts: maths, a box, a number, an option letter, or yes and no."""
    if match := _LEADING_MATHS.match(rest):
        content = next(group for group in match.groups() if group is not None).strip()
        return _last_box(content) or content
    clause = _clause(rest)
    if (box := _last_box(clause)) is not None:
        return box
    if match := _LEADING_NUMBER.match(clause):
        return _bare_number(match["value"])
    if clause[:1].isdigit() or clause[:1] in ("$", "\\", "(", "-", "−"):
        results = list(_RESULT.finditer(clause))
        if results:
            return _bare_number(results[-1]["value"])
    if letter := _letter_at(rest):
        return letter
    match = _TRUTH.match(rest)
    return match["value"] if match else None


def _named(rest: str) -> str | None:
    """The list with which a text starts, or who is what, such as 'Zoey is a knave, and Leo is a knight'."""
    match = _LIST.match(rest) or _ROLES.match(rest)
    return match[0] if match else None


def _clean(clause: str) -> str:
    return clause.replace("**", "").strip(" \"'`“”*_")


def _value_of_sentence(rest: str, under_heading: bool, kind: AnswerKind) -> str | None:
    """The value of a sentence such as 'Sandra needs **5 times**.', or the sentence if it is short."""
    clause = _clause(rest)
    if under_heading and len(clause) + 1 < len(rest.split("\n", 1)[0].rstrip()):
        return None  # a solution of several sentences stands under the heading, not an answer
    if quantity(normal(clause)) is not None:  # such as '1 1/2'
        return _clean(clause)
    if match := _BOLD_NUMBER.search(clause):
        return _bare_number(match["value"])
    words = len(clause.split())
    numbers = {_bare_number(match["value"]) for match in _ANY_NUMBER.finditer(clause)}
    if len(numbers) == 1 and words > _FEW_WORDS:
        return numbers.pop()
    return _clean(clause) if kind != "number" and words <= _MOST_WORDS else None


def _stated(text: str, kind: AnswerKind) -> str | None:
    """The value of the last statement such as 'the answer is X' that has one."""
    cues = list((_CHOICE_CUE if kind == "choice" else _CUE).finditer(text))
    for cue in reversed(cues[-_MOST_CUES:]):
        rest = _after_decoration(text[cue.end() : cue.end() + 1_000])
        if not rest or _NEGATED.search(cue.group()) or _NEGATED.match(rest):
            continue
        if kind == "choice":
            value = _letter_at(rest)
        elif kind == "text":
            value = _clean(_clause(rest))
        else:
            value = _value_at(rest) or _value_of_sentence(rest, cue.group()[-1] in ":\n", kind)
        if value:
            return value
    return None


def _hashed(text: str, kind: AnswerKind) -> str | None:
    """The value after the last ``####``, unless that is a heading with text below it."""
    for match in reversed(list(_HASHES.finditer(text))[-_MOST_CUES:]):
        value = match["value"].strip(" *")
        last = not text[match.end() : match.end() + 1_000].strip()
        if value and (last or quantity(normal(value)) is not None):
            return value if kind != "choice" else _letter_at(value)
    return None


def extract_answer(text: str, kind: AnswerKind = "auto") -> str | None:
    r"""Return the final answer that a text states.

    The last box counts first, then ``#### x``, then a statement such as 'the answer is x', then (by kind) the
    last option letter or the last number.

    Args:
        text: the answer part of a response.
        kind: ``number``, ``choice`` (the letter is returned), ``text``, ``math``, or ``auto``.

    Returns:
        The answer as it stands there, None if there is none.
    """
    box = _last_box(text)
    if kind == "choice":
        if box is not None and (letter := option_letter(normal(box))):
            return letter
        if letter := _hashed(text, kind) or _stated(text, kind):
            return letter
        options = list(_OPTION.finditer(text))
        return next(group for group in options[-1].groups() if group) if options else None
    answer = box or _hashed(text, kind) or _stated(text, kind)
    if answer is None and kind in ("number", "auto"):
        numbers = deque(_ANY_NUMBER.finditer(text), maxlen=1)
        answer = _bare_number(numbers[0]["value"]) if numbers else None
    return answer


def extract_candidates(line: str) -> str | None:
    """Return the last value that a line of thinking states as the target, None if it states none.

    This tells a line that states the requested target, or restates it, from one that only computes, by the
    phrases of `CANDIDATE_PATTERNS`. It does not judge: 'But this gives 137, not 147.' states 137.

    Args:
        line: one line; only its last `MAX_LINE` characters are looked at.
    """
    line = line[-MAX_LINE:]
    best: tuple[int, str] | None = None
    if (box := _last_box(line)) is not None:
        best = (line.rfind(box), box)
    for pattern in CANDIDATE_PATTERNS.values():
        for match in pattern.finditer(line):
            inside = "value" in pattern.groupindex
            at = match.start("value") if inside else match.end()
            before = line[max(0, match.start() - _NEAR) : match.start()]
            if _NEGATED.search(line, match.start(), at) or _CONDITION.search(before):
                continue
            rest = _after_decoration(line[at:])
            value = _bare_number(match["value"]) if inside else _value_at(rest) or _named(rest)
            if value and (best is None or at >= best[0]):
                best = (at, value)
    return best[1] if best else None


# ----------------------------------------------------------------------------------------------------------
# Reading a value


@dataclass(frozen=True)
class Quantity:
    """A number, whether it is a percentage, and the words of its unit."""

    value: Fraction
    percent: bool
    unit: frozenset[str]


_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ('"', '"'), ("'", "'"))
_CHARACTERS = str.maketrans({"−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "％": "%"})
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[!,;:]|\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])", ""),
        (r"\{,\}", ","),
        (r"\\\s", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s?\{(-?[\d.]{1,40})\}\s?\{([\d.]{1,40})\}", r" \1/\2"),
        (r"\\frac\s?(\d)\s?(\d)", r" \1/\2"),
        (r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}", r" \1 "),
        (r"\^\s?\{?\\circ\}?|°", " degrees"),
        (r"\\([$%&#])", r"\1"),
        (r"[\s~]+", " "),
    )
)
_QUANTITY = re.compile(
    r"(?P<sign>[-+]?)\s?(?P<currency>[$€£]?)\s?(?P<inner>-?)\s?"
    rf"(?:(?:(?P<whole>\d+)\s)?(?P<top>{_DIGITS})\s?/\s?(?P<bottom>{_DIGITS})"
    rf"|(?P<decimal>{_DIGITS})(?:[eE](?P<exponent>[-+]?\d{{1,3}}))?)"
    r"(?:\s?(?P<percent>%|percent\b))?"
    r"(?P<unit>\s[^\d]{1,60}(?:\^[23])?|(?:[kcm]m|[km]g|ml|mph|lbs?|ft|hrs?|mins?|[ap]m)\b\.?)?"
)
_UNIT = re.compile(r"[a-z './²³-]+(?:\^[23])?")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound"}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_UNITS = frozenset("mgshl")
_FILL_WORDS = frozenset(("of", "the", "a", "an", "per", "each", "every", "total", "in", "more", "altogether"))
# Words after a number that change its value, so that they are no unit.
_NO_UNITS = re.compile(
    r"\b(?:pi|sqrt|sin|cos|tan|log|ln|exp|mod|or|and|to|is|are|not?|if|than|plus|minus|times|over|squared|cubed"
    r"|factorial|infinity|half|halves|quarters?|(?:thir|four|fif|six|eigh|ten|hundred|thousand)(?:d|th)s?)\b"
)
_CHOICE = re.compile(
    r"(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)? )?\(?(?P<letter>[A-Za-z])(?:\)|[.:]|$)(?:\s.*)?",
    re.DOTALL,
)


def unwrapped(text: str) -> str:
    """What stands within a box, the delimiters of a formula, or quotation marks."""
    text = (_last_box(text) or text).strip()
    for opening, closing in _DELIMITERS:
        if len(text) >= len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : len(text) - len(closing)]
    return text


def normal(text: str) -> str:
    """A text without what does not change an answer: delimiters, spacing commands, decoration, a last full stop."""
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    for _ in range(4):
        before = text
        text = unwrapped(text.strip().strip("*`").rstrip(".,;:"))
        if text == before:
            break
    return text


def quantity(text: str) -> Quantity | None:
    """Read a normal text as a number with an optional unit."""
    match = _QUANTITY.fullmatch(text) if len(text) <= _MOST_DIGITS else None
    if match is None:
        return None

    def number(group: str) -> Fraction:
        return Fraction((match[group] or "0").replace(",", ""))

    if match["decimal"]:
        value = number("decimal") * Fraction(10) ** int(match["exponent"] or 0)
    elif number("bottom"):
        value = number("whole") + number("top") / number("bottom")
    else:
        return None
    unit = [_CURRENCIES[match["currency"]]] if match["currency"] else []
    words = (match["unit"] or "").strip().casefold()
    if words:
        tokens = re.findall(r"[a-z]+", words)
        if not _UNIT.fullmatch(words) or not tokens or _NO_UNITS.search(words):
            return None
        if tokens[0] in _SCALES:
            value *= _SCALES[tokens.pop(0)]
        if tokens and len(tokens[0]) == 1 and tokens[0] not in _SHORT_UNITS | _FILL_WORDS:
            return None
        unit += [token[:-1] if len(token) > 3 and token.endswith("s") else token for token in tokens]
    negative = (match["sign"] == "-") != (match["inner"] == "-")
    return Quantity(-value if negative else value, bool(match["percent"]), frozenset(unit) - _FILL_WORDS)


def option_letter(text: str) -> str | None:
    """The option letter of a normal text that is an option: 'B', '(B)', 'B. foo', 'option B'."""
    match = _CHOICE.fullmatch(text)
    return match["letter"].upper() if match else None
