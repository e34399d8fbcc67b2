"""What the page of a bench run shows, and that nothing a model wrote can act in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_report import many, record, run
from test_table import printed

from thrifty.bench.page import _POLICY, MAX_CHARACTERS, MAX_PAIRS, _cut, _ticks, write_html
from thrifty.bench.table import table

VOID = {"meta", "img", "br", "circle", "path", "rect"}


class Page(HTMLParser):
    """Reads a page: its elements, that they nest, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page_of(folder: Path, records: list[dict[str, Any]], **more: Any) -> tuple[str, Page]:
    summary, path = run(folder, records, **more)
    write_html(summary, path, folder / "report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_page_needs_nothing_from_outside_and_has_no_script(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, many(30, ("cgrs", "first-try")))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        assert "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:")
    assert "url(" not in text
    assert "http://" not in text
    assert page.count("svg") == 2
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}) in page.elements


HOSTILE = "\n<script>alert(1)</script></pre><img src=x onerror=alert(1)>\x00\x1b[31m\ud800\u202e&lt;\"'"


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    name = f"m{HOSTILE}"
    records = [record("a" + HOSTILE, text=HOSTILE, question=HOSTILE)]
    records += [record("a" + HOSTILE, name, thinking=3, text=HOSTILE, question=HOSTILE)]
    for r in records:
        r.update(answer=HOSTILE, reference=HOSTILE, exit_reason=HOSTILE)
    summary, path = run(tmp_path, records)
    summary |= {"model": HOSTILE, "task": HOSTILE}
    write_html(summary, path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.count("script") == 0
    assert page.count("img") == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)
    assert "<script>alert(1)</script></pre><img src=x onerror=alert(1)>␀␛[31m\ufffd\ufffd&lt;\"'" in page.text
    printed(table(summary))


def test_page_pairs_the_best_savings_with_losses(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, many(100))
    headings = re.findall(r"<h3>(p\d+: .*?)</h3>", text)
    assert len(headings) == MAX_PAIRS == page.count("article")
    assert headings[:4] == [
        "p99: cgrs saved 97 tokens",  # 99 fewer, and 2 that were forced
        "p0: cgrs lost the right answer",
        "p98: cgrs saved 96 tokens",
        "p10: cgrs lost the right answer",
    ]
    assert "<mark>\n&lt;/think&gt;\n</mark>" in text
    assert "SIDE STREAM" not in text
    assert "207 tokens: 5 prompt, 200 thinking, 2 answer; ended by model" in text


def test_every_method_gets_its_share_of_traces(tmp_path: Path) -> None:
    text, _ = page_of(tmp_path, many(60, tuple("abcd")))
    chosen = re.findall(r"<h3>p\d+: (\w) (saved|lost)", text)
    first = [(m, "saved") for m in "abcd"] + [(m, "lost") for m in "abcd"]
    assert chosen == first + [(m, "saved") for m in "abcd"]


def test_lengths_are_sampled_evenly_beyond_the_limit(tmp_path: Path) -> None:
    text, _ = page_of(tmp_path, many(450))
    assert "200 of 450 problems, evenly spaced." in text
    assert text.count("<g><title>") == 200


def test_a_long_trace_is_cut_in_the_middle_and_says_so(tmp_path: Path) -> None:
    long = "begin" + "x" * (3 * MAX_CHARACTERS) + "end"
    text, page = page_of(tmp_path, [record("a", text=long), record("a", "m", thinking=3)])
    left_out = len(long) + len("It is 7.") - MAX_CHARACTERS
    assert f"<span class=cut>{left_out:,} characters left out</span>" in text
    assert "begin" in page.text
    assert "end" in page.text
    assert page.text.count("x" * 100) == text.count("x" * 100) > 0
    shown = "".join(p.text for p in _cut(record("a", text=long)["segments"]) if p.tag != "span")
    assert shown == (long + "It is 7.")[: MAX_CHARACTERS * 2 // 3] + (long + "It is 7.")[-MAX_CHARACTERS // 3 :]


@pytest.mark.parametrize("sizes", [(0, 1), (3000, 3000), (3999, 2, 2000), (4000, 5, 2000), (1, 1, 9000), (9000, 1, 1)])
def test_cuts_across_segments_lose_nothing_else(sizes: tuple[int, ...]) -> None:
    segments = [
        {"kind": "injected" if i % 2 else "thinking", "phase": "thinking", "text": chr(97 + i) * size, "ids": []}
        for i, size in enumerate(sizes)
    ]
    whole = "".join(s["text"] for s in segments)
    pieces = list(_cut(segments))
    shown = "".join(p.text for p in pieces if p.tag != "span")
    if len(whole) <= MAX_CHARACTERS:
        assert shown == whole
        assert all(p.tag != "span" for p in pieces)
    else:
        assert shown == whole[:4000] + whole[-2000:]
        assert [p.text for p in pieces if p.tag == "span"] == [f"{len(whole) - 6000:,} characters left out"]


def test_an_aside_is_shown_marked_where_it_was_said() -> None:
    told = ("thinking", "aside", "answer", "aside", "answer")
    kinds = ("thinking", "injected", "answer", "injected", "answer")
    segments = [
        {"kind": k, "phase": p, "text": str(i), "ids": []} for i, (k, p) in enumerate(zip(kinds, told, strict=True))
    ]
    pieces = list(_cut(segments))
    assert [piece.phase for piece in pieces] == ["thinking", "thinking", "answer", "answer", "answer"]
    assert [piece.tag for piece in pieces] == ["", "mark", "", "mark", ""]


def test_a_page_without_comparison_says_so(tmp_path: Path) -> None:
    for records in ([record("a")], [record("a", "m")], [record("a"), record("b", "m")]):
        text, _ = page_of(tmp_path, records)
        assert "no responses of vanilla and another" in text or "No problem in common" in text


@pytest.mark.parametrize("top", [0.5, 1, 7, 10, 99, 1234, 5_000_000])
def test_ticks_are_few_and_round(top: float) -> None:
    ticks = list(_ticks(top))
    assert ticks[0] == 0
    assert ticks[-1] <= top
    assert len(ticks) <= 6
