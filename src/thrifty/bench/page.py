"""What a bench run shows in a browser: one page of tables, the picture, lengths per problem, and traces."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from thrifty.bench.picture import draw_pareto
from thrifty.bench.statistics import VANILLA
from thrifty.bench.store import read_records
from thrifty.bench.table import (
    COLUMNS,
    Cell,
    Summary,
    cells,
    heading,
    notes,
    number,
    percent,
    plain,
    shortened,
    size,
)
from thrifty.errors import MissingExtra
from thrifty.traces.trace import Usage

MAX_PROBLEMS = 200
"""Problems in a chart of lengths."""
MAX_PAIRS = 12
"""Problems whose traces are shown."""
MAX_CHARACTERS = 6_000
"""Characters of a trace that are shown: two thirds from its beginning, one from its end."""

_STYLE = """
:root { color-scheme: light; --line: #e2e2e2; --soft: #666; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1160px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; } .soft, small { color: var(--soft); } small { display: block; font-size: .78rem; }
.wide { overflow-x: auto; } img, svg { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { text-align: right; vertical-align: top; padding: .3rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .85rem; } th:first-child, td:first-child { text-align: left; }
td:first-child { font-weight: 600; overflow-wrap: anywhere; } .good { color: #00704f; } .bad { color: #b03a00; }
article { border-top: 2px solid var(--line); margin-top: 1.6rem; padding-top: .2rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; align-items: start; }
.trace { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; min-width: 0; }
pre { font: 12.5px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; }
pre.question { background: #f5f5f3; border-radius: 6px; padding: .6rem .8rem; }
pre.thinking, pre.answer { border-left: 3px solid #0072b2; padding-left: .7rem; max-height: 30rem; overflow-y: auto; }
pre.thinking { color: #4a4a4a; border-color: #d9d9d9; } mark { background: #ffe49a; color: inherit; }
.cut { background: #eee; color: var(--soft); border-radius: 3px; padding: 0 .3rem; }
"""
# nothing on the page needs a script, so that nothing which a model wrote can be one
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_html(summary: Summary, records_path: Path, path: Path) -> None:
    """Write one page that needs nothing else: the table, the picture, lengths per problem, and traces.

    The records are read twice and never held; what is shown of them is bounded by `MAX_PROBLEMS`, `MAX_PAIRS`
    and `MAX_CHARACTERS`.

    Args:
        summary: of a run.
        records_path: its ``records.jsonl``.
        path: where to write it.

    Raises:
        ThriftyError: a line of the records is not a record.
    """
    write_page(summary, records_path, path, drawn(summary))


def drawn(summary: Summary) -> bytes | str:
    """Return the picture, or why there is none."""
    picture = io.BytesIO()
    try:
        draw_pareto(summary, picture)
    except MissingExtra as error:
        return str(error)
    return picture.getvalue()


def write_page(summary: Summary, records_path: Path, path: Path, picture: bytes | str) -> None:
    """Write the page of `write_html` around a picture that is drawn already, or the reason why there is none."""
    lengths = _read_lengths(summary, records_path)
    with path.open("w", encoding="utf-8") as page:
        page.writelines(_page(summary, records_path, lengths, picture))


def _page(summary: Summary, records_path: Path, lengths: _Lengths, picture: bytes | str) -> Iterator[str]:
    title = _safe(heading(summary))
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>"
    yield f'<p class="soft">{_safe(size(summary))}</p>'
    yield from _tables(summary)
    yield "<h2>Accuracy against tokens</h2>"
    if isinstance(picture, bytes):
        yield f'<img alt="Accuracy against tokens" src="data:image/png;base64,{b64encode(picture).decode()}">'
    else:
        yield f"<p>No picture: {_safe(picture)}</p>"
    yield "<h2>Tokens per problem, before and after</h2>"
    others = [spec for spec in summary["methods"] if spec != VANILLA and lengths.get(spec)]
    if not others or not lengths.get(VANILLA):
        yield "<p>There are no responses of vanilla and another method yet.</p></body></html>\n"
        return
    yield '<p class="soft">All tokens of the account, prompt included. From vanilla (grey) to the method: '
    yield '<span style="color:#0072B2">●</span> no less right, '
    yield '<span style="color:#D55E00">■</span> less right. Shortest vanilla response first.</p>'
    for spec in others:
        yield f"<h3>{_safe(spec)}</h3>"
        yield from _dumbbells(lengths[VANILLA], lengths[spec])
    yield "<h2>Traces side by side</h2>"
    yield '<p class="soft">Where a method saved most and where it lost the right answer, in turn. '
    yield "<mark>Marked</mark>: text that the method put in.</p>"
    yield from _pairs(_select(lengths, others), records_path)
    yield "</body></html>\n"


def _safe(text: object) -> str:
    return escape(plain(text))


def _tables(summary: Summary) -> Iterator[str]:
    def row(tag: str, contents: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{content}</{tag}>' for content in contents)}</tr>"

    def cell(c: Cell) -> str:
        return f'<span class="{c.tone}">{_safe(c.value)}</span>' + (
            f"<small>{_safe(c.detail)}</small>" * bool(c.detail)
        )

    yield f'<div class="wide"><table>{row("th", ["method", *COLUMNS])}'
    for spec, values in summary["methods"].items():
        yield row("td", [_safe(spec), *map(cell, cells(values))])
    yield "</table></div>"
    for note in notes(summary):
        yield f'<p class="soft">{_safe(note)}</p>'
    kinds = ("prompt", "thinking", "answer", "injected", "probe", "helper", "reread", "latent_steps")
    yield "<h2>Where the tokens went</h2>"
    yield '<p class="soft">Mean of a response by kind; the share of the thinking that came after the right answer '
    yield "first stood there; and what ended the thinking or the response.</p>"
    heads = ["method", *(kind.replace("_", " ") for kind in kinds), "after right", "ended by"]
    yield f'<div class="wide"><table>{row("th", heads)}'
    for spec, values in summary["methods"].items():
        means = [number(values["usage"][kind] / values["n"] if values["n"] else None) for kind in kinds]
        exits = ", ".join(f"{reason} {count:,}" for reason, count in values["exit_reasons"].items())
        late = percent(values["tokens_after_first_correct_share"], ".0f")
        yield row("td", [_safe(spec), *means, late, f"<small>{_safe(exits)}</small>"])
    yield "</table></div>"


@dataclass(slots=True)
class _Length:
    """What one method spent on one problem: over all samples, and in the first."""

    records: int = 0
    tokens: int = 0
    correct: int = 0
    first_tokens: int | None = None
    first_correct: bool = False


_Lengths = dict[str, dict[str, _Length]]  # by method and problem


def _read_lengths(summary: Summary, records_path: Path) -> _Lengths:
    lengths: _Lengths = {spec: {} for spec in (VANILLA, *summary["methods"])}
    for record in read_records(records_path):
        if record["method"] in lengths:
            length = lengths[record["method"]].setdefault(record["problem_id"], _Length())
            tokens = Usage(**record["usage"]).total
            length.records += 1
            length.tokens += tokens
            length.correct += bool(record["correct"])
            if record["sample"] == 0:
                length.first_tokens, length.first_correct = tokens, bool(record["correct"])
    return lengths


def _dumbbells(vanilla: Mapping[str, _Length], method: Mapping[str, _Length]) -> Iterator[str]:
    """Draw a line from before to after for each problem, as an SVG."""
    shared = sorted((i for i in vanilla if i in method), key=lambda i: vanilla[i].tokens / vanilla[i].records)
    if not shared:
        yield "<p>No problem in common with vanilla yet.</p>"
        return
    step = max(1.0, len(shared) / MAX_PROBLEMS)
    shown = [shared[int(k * step)] for k in range(min(len(shared), MAX_PROBLEMS))]
    pairs = [(i, vanilla[i], method[i]) for i in shown]
    top = max(max(v.tokens / v.records, m.tokens / m.records) for _, v, m in pairs) or 1.0
    width, height, left = 1100, 230, 55

    def y(tokens: float) -> float:
        return round(height - 14 - (height - 24) * tokens / top, 1)

    yield f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="tokens per problem" '
    yield 'font-size="11" font-family="sans-serif">'
    for tick in _ticks(top):
        yield f'<path d="M{left} {y(tick)}H{width}" stroke="#e8e8e8"/>'
        yield f'<text x="{left - 8}" y="{y(tick)}" dy=".35em" text-anchor="end" fill="#666">{tick:,}</text>'
    for k, (problem_id, v, m) in enumerate(pairs):
        x = left + (width - left) * (k + 0.5) / len(pairs)
        before, after = v.tokens / v.records, m.tokens / m.records
        lost = m.correct / m.records < v.correct / v.records
        colour = "#D55E00" if lost else "#0072B2"
        yield f"<g><title>{_safe(shortened(problem_id, 80))}: {before:,.0f} to {after:,.0f} tokens</title>"
        yield f'<path d="M{x:.1f} {y(before)}V{y(after)}" stroke="{colour}" stroke-opacity=".35" stroke-width="1.5"/>'
        yield f'<circle cx="{x:.1f}" cy="{y(before)}" r="2.2" fill="#999"/>'
        if lost:
            corner = f'x="{x - 2.6:.1f}" y="{y(after) - 2.6:.1f}"'
            yield f'<rect {corner} width="5.2" height="5.2" fill="{colour}"/></g>'
        else:
            yield f'<circle cx="{x:.1f}" cy="{y(after)}" r="2.6" fill="{colour}"/></g>'
    yield "</svg>"
    if len(shown) < len(shared):
        yield f'<p class="soft">{len(shown):,} of {len(shared):,} problems, evenly spaced.</p>'


def _ticks(top: float) -> range:
    """Return three to six round numbers from 0 to the top."""
    step = next(unit * 10**k for k in range(20) for unit in (1, 2, 5) if top / (unit * 10**k) <= 5)
    return range(0, int(top) + 1, step)


class _Pair(NamedTuple):
    problem_id: str
    method: str
    why: str


def _select(lengths: _Lengths, methods: Sequence[str]) -> list[_Pair]:
    """Choose problems whose first responses are worth reading: of each method in turn, a saving, then a loss."""
    before = {i: length for i, length in lengths[VANILLA].items() if length.first_tokens is not None}
    candidates: list[tuple[Iterator[_Pair], Iterator[_Pair]]] = []
    for spec in methods:
        saved: list[tuple[int, str]] = []
        lost: list[str] = []
        for i, length in lengths[spec].items():
            if length.first_tokens is not None and i in before:
                saving = (before[i].first_tokens or 0) - length.first_tokens
                if before[i].first_correct and not length.first_correct:
                    lost.append(i)
                elif saving > 0:
                    saved.append((saving, i))
        saved.sort(key=lambda s: -s[0])
        # no more than this many can be shown or taken by other methods
        best = iter([_Pair(i, spec, f"saved {saving:,} tokens") for saving, i in saved[:MAX_PAIRS]])
        worst = iter([_Pair(i, spec, "lost the right answer") for i in lost[:MAX_PAIRS]])
        candidates.append((best, worst))
    chosen: dict[str, _Pair] = {}
    for turn in range(MAX_PAIRS):
        for best, worst in candidates:
            queue = chain(worst, best) if turn % 2 else chain(best, worst)
            pair = next((pair for pair in queue if pair.problem_id not in chosen), None)
            if pair and len(chosen) < MAX_PAIRS:
                chosen[pair.problem_id] = pair
    return list(chosen.values())


def _pairs(pairs: Sequence[_Pair], records_path: Path) -> Iterator[str]:
    wanted = {(pair.problem_id, spec) for pair in pairs for spec in (VANILLA, pair.method)}
    shown: dict[tuple[str, str], str] = {}
    asked: dict[str, str] = {}
    for record in read_records(records_path):
        key = (record["problem_id"], record["method"])
        if record["sample"] == 0 and key in wanted:
            shown[key] = _trace(record)
            reference = _safe(shortened(str(record["reference"]), 500))
            question = _safe(shortened(str(record["question"]), MAX_CHARACTERS // 2))
            asked[record["problem_id"]] = f'<pre class="question">{question}</pre><p>Reference: <b>{reference}</b></p>'
    if not pairs:
        yield "<p>No method saved a token or lost a right answer.</p>"
    for pair in pairs:
        name, spec = _safe(shortened(pair.problem_id, 80)), _safe(pair.method)
        yield f"<article><h3>{name}: {spec} {pair.why}</h3>{asked[pair.problem_id]}"
        both = "".join(shown[pair.problem_id, spec] for spec in (VANILLA, pair.method))
        yield f'<div class="pair">{both}</div></article>'


def _trace(record: Mapping[str, Any]) -> str:
    """Render one response; side streams appear in its account alone."""
    usage = Usage(**record["usage"])
    kinds = {
        name: getattr(usage, name) for name in ("prompt", "thinking", "answer", "injected", "probe", "helper", "reread")
    }
    kinds["latent steps"] = usage.latent_steps
    account = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    verdict = {True: '<b class="good">right</b>', False: '<b class="bad">wrong</b>'}.get(
        record["correct"], "not scored"
    )
    answer = "no answer" if record["answer"] is None else f"answer {_safe(shortened(str(record['answer']), 200))}"
    parts = [f'<div class="trace"><b>{_safe(record["method"])}</b>: {verdict}, {answer}']
    parts.append(f"<small>{usage.total:,} tokens: {account}; ended by {_safe(record['exit_reason'])}</small>")
    for phase, pieces in groupby(_cut(record["segments"]), key=lambda piece: piece.phase):
        written = "".join(
            f"<{piece.tag}{' class=cut' * (piece.tag == 'span')}>{_safe(piece.text)}</{piece.tag}>"
            if piece.tag
            else _safe(piece.text)
            for piece in pieces
        )
        look = "thinking" if phase == "thinking" else "answer"
        # a browser drops the first newline of a pre: let it not be the model's
        parts.append(f'<small>{look}</small><pre class="{look}">\n{written}</pre>')
    return "".join([*parts, "</div>"])


class _Piece(NamedTuple):
    phase: str
    tag: str  # around it: mark what a method put in, span what stands for a cut
    text: str


def _cut(segments: Sequence[Mapping[str, Any]]) -> Iterator[_Piece]:
    """Yield the response from its segments; out of the middle of a long one, a mark of what is missing."""
    pieces: list[_Piece] = []
    for s in segments:
        if s["kind"] not in ("probe", "helper"):
            phase = pieces[-1].phase if s["phase"] == "aside" and pieces else s["phase"]  # shown where it was said
            pieces.append(_Piece(phase, "mark" * (s["kind"] == "injected"), s["text"]))
    total = sum(len(piece.text) for piece in pieces)
    hidden = range(MAX_CHARACTERS * 2 // 3, total - MAX_CHARACTERS // 3) if total > MAX_CHARACTERS else range(0)
    start = 0
    for piece in pieces:
        end = start + len(piece.text)
        if head := piece.text[: max(0, hidden.start - start)] if hidden else piece.text:
            yield piece._replace(text=head)
        if hidden and start <= hidden.start < end:
            yield _Piece(piece.phase, "span", f"{len(hidden):,} characters left out")
        if hidden and (tail := piece.text[max(0, hidden.stop - start) :]):
            yield piece._replace(text=tail)
        start = end
