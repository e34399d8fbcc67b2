"""The documentation says what is so: generated parts are current, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from thrifty import errors
from thrifty.bench.statistics import summarise
from thrifty.catalogue import Need
from thrifty.cli import app
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods import get_method, list_methods
from thrifty.methods.base import Method
from thrifty.models.base import Settings
from thrifty.models.torch import TorchModel
from thrifty.spec import split_specs
from thrifty.traces.trace import Trace, Usage

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def load(path: Path, name: str) -> ModuleType:
    """Import a file that is no part of a package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(ROOT / "docs"))  # generate.py imports what lies beside it
generate = load(ROOT / "docs" / "generate.py", "docs_generate")


def page_ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=page_ids)


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


# -- generated parts -------------------------------------------------------------------------------------------


def test_generated_parts_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    code = generate.main(["--check"])
    assert code == 0, f"run: make docs\n{capsys.readouterr().out}"


def test_every_system_and_every_method_is_described() -> None:
    readme, index = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/methods.md"))
    for entry in generate.CATALOGUE.values():
        assert re.search(rf"^\| (\*\*)?{entry.slug}(\*\*)? \| {entry.family} \|", readme, re.MULTILINE)
    available = generate.available_methods()
    assert {page.stem for page in (ROOT / "docs" / "methods").iterdir()} == {entry.slug for entry in available}
    for entry in available:
        section = index.split(f"\n## {generate.FAMILIES[entry.family]}\n")[1].split("\n## ")[0]
        assert f"\n| [{entry.slug}](methods/{entry.slug}.md) | " in section
        page = (ROOT / "docs" / "methods" / f"{entry.slug}.md").read_text(encoding="utf-8")
        assert page.startswith(f"{generate.NOTICE}\n\n# {entry.slug}\n\n")
        assert re.findall("^## (.+)", page, re.MULTILINE) == ["Options", "Measured here"]
        for option in fields(generate.method_class(entry.slug)):
            assert f"\n| `{option.name}` | " in page


def test_the_index_tells_what_composes() -> None:
    class Alone(Method):
        def solve(self, *args: Any, **options: Any) -> Iterator[Trace]:
            yield from ()

    assert generate.composing(Alone) == "stands alone"
    rows = {row.split("]")[0]: row for row in generate.methods_index().splitlines()}
    assert rows["| [cgrs"].endswith(" | `logits`, `kv` | composes with `+` |")
    assert rows["| [arm"].endswith(" | `sampling` | composes with methods that steer |")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A tree with pages of its own, and no evidence."""
    for name in ("src", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    (tmp_path / "evidence").mkdir()
    for name in ("README.md", "docs/methods.md"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def test_check_tells_what_is_stale_and_writes_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"], copy) == 1
    assert "out of date: docs/papers.md" in capsys.readouterr().out
    assert not (copy / "docs" / "papers.md").exists()
    assert generate.main([], copy) == 0
    assert generate.main(["--check"], copy) == 0
    readme = copy / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("| control | available |", "| control | broken |"))
    assert generate.main(["--check"], copy) == 1
    generate.main([], copy)
    assert readme.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


def test_pages_of_methods_that_are_no_more_go(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main([], copy)
    folder = copy / "docs" / "methods"
    (folder / "gone.md").write_text((folder / "cgrs.md").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "by-hand.md").write_text("# Notes\n")
    capsys.readouterr()
    assert generate.main(["--check"], copy) == 1
    assert capsys.readouterr().out == "out of date: docs/methods/gone.md\n"
    assert (folder / "gone.md").exists()
    assert generate.main([], copy) == 0
    assert capsys.readouterr().out == "removed: docs/methods/gone.md\n"
    assert not (folder / "gone.md").exists()
    assert (folder / "by-hand.md").exists(), "it was not written by generate.py"
    assert generate.main(["--check"], copy) == 0


def test_a_page_without_markers_is_one_line(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "README.md").write_text("# nothing here\n")
    assert generate.main([], copy) == 2
    assert "<!-- methods:begin -->" in capsys.readouterr().err


RESULT = {
    "n": 300,
    "accuracy": 0.84,
    "token_ratio": 0.612,
    "token_ratio_ci": [0.58, 0.65],
    "accuracy_diff": -0.013,
    "accuracy_diff_ci": [-0.04, 0.0133],
    "cap_accuracy_at_same_tokens": 0.71,
}


BOTH = {
    "slug": "cgrs+first-try(tries=2)",
    "title": "Both at once",
    "command": "thrifty bench --methods 'cgrs+first-try(tries=2)' | tee log",
    "model": "pebble",
    "task": "mix",
    "n": 300,
    "result": RESULT,
    "finding": "It helps\nhere | there.",
    "date": "2026-01-02",
}


def cells_of(page: str, start: str) -> list[str]:
    """Return the cells of the one row of a table that starts so."""
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return [c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_claims_tell_effect_and_uncertainty(copy: Path) -> None:
    (copy / "evidence" / "both.json").write_text(json.dumps(BOTH))
    assert cells_of(generate.claims_page(copy), "[Both at once]") == [
        "[Both at once](../evidence/both.json), `pebble` on `mix`, 2026-01-02",
        "300",
        "-1.3 (-4.0 to +1.3)",
        "0.61 (0.58 to 0.65)",
        "71.0% (method 84.0%)",
        "`thrifty bench --methods 'cgrs+first-try(tries=2)' \\| tee log`",
        "It helps here \\| there.",
    ]
    assert generate.papers_page(copy).count("(../evidence/both.json)") == 2


def test_what_was_measured_of_a_composition_stands_on_the_page_of_each_part(copy: Path) -> None:
    (copy / "evidence" / "both.json").write_text(json.dumps(BOTH))
    generate.main([], copy)
    claims = (copy / "docs" / "claims.md").read_text(encoding="utf-8")
    expected = [text.replace("](../", "](../../") for text in cells_of(claims, "[Both at once]")]
    heads = cells_of(claims, "measured")
    for slug in ("cgrs", "first-try"):
        page = (copy / "docs" / "methods" / f"{slug}.md").read_text(encoding="utf-8")
        _, measured = page.split("\n## Measured here\n")
        assert cells_of(measured, "measured") == heads[:-1]
        assert cells_of(measured, "[Both at once]") == expected[:-1]
        assert measured.endswith(f"\n\n{expected[0]}: It helps here | there.\n"), "the finding is no cell of a table"
    cap = (copy / "docs" / "methods" / "cap.md").read_text(encoding="utf-8")
    assert cap.endswith("\n## Measured here\n\nNothing is recorded yet.\n")


def test_claims_do_without_optional_keys(copy: Path) -> None:
    assert "Nothing has been recorded yet" in generate.claims_page(copy)
    (copy / "evidence" / "cap.json").write_text('{"result": {"n": 12, "token_ratio": 0.5, "accuracy_diff_ci": null}}')
    assert "| [cap](../evidence/cap.json) | 12 | - | 0.50 | - | - | - |" in generate.claims_page(copy)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_evidence_that_is_no_object_is_named(copy: Path, content: str) -> None:
    (copy / "evidence" / "broken.json").write_text(content)
    with pytest.raises(ThriftyError, match=r"broken\.json"):
        generate.claims_page(copy)


def test_docstrings_become_markdown() -> None:
    summary, paragraphs, options = generate.read_docstring(
        "Close at ``</think>`` in A*.\n\nSource: X, arXiv 2501.19393.\nMore <b>.\n\n"
        "Attributes:\n    one: first,\n        goes on.\n    two: second.\n"
    )
    assert summary == "Close at `</think>` in A\\*."
    assert paragraphs == ["Source: X, [arXiv 2501.19393](https://arxiv.org/abs/2501.19393). More &lt;b>."]
    assert options == {"one": "first, goes on.", "two": "second."}


def test_lists_in_docstrings_stay_lists() -> None:
    _, found, _ = generate.read_docstring(
        "Choose.\n\n- ``one``: goes\n  on, a - b.\n- ``two``, arXiv 2501.19393.\n\nThere are\nmore:\n- last.\n"
    )
    assert found == [
        "- `one`: goes on, a - b.\n- `two`, [arXiv 2501.19393](https://arxiv.org/abs/2501.19393).",
        "There are more:\n\n- last.",
    ]
    page = (ROOT / "docs" / "methods" / "arm.md").read_text(encoding="utf-8")
    assert re.findall(r"^- `(\w+)`.*[:.]", page, re.MULTILINE) == ["adaptive", "direct", "consensus"]


# -- commands --------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """Yield the page and the text of every thrifty command in a block, or with arguments in the running text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for body in blocks(page, "bash"):
            for line in body.replace("\\\n", " ").splitlines():
                if line.startswith("thrifty "):
                    yield page_ids(page), line
        for inline in re.findall(r"(?<!`)`(thrifty [^`\n]+)`(?!`)", BLOCK.sub("", text)):
            for line in inline.split(" && "):
                if " " in line.removeprefix("thrifty "):
                    yield page_ids(page), line


@pytest.mark.parametrize("line", sorted({line for _, line in commands()}))
def test_commands_parse(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command = command.commands[arguments.pop(0)]
    parameters = command.make_context("thrifty", arguments).params
    if not getattr(command, "commands", None):
        specs = parameters.get("methods") or parameters.get("method") or "vanilla"
        for spec in split_specs(specs):
            if spec.startswith("family:"):
                assert spec.removeprefix("family:") in generate.FAMILIES
            else:
                get_method(spec)
        if "slug" in parameters:
            assert parameters["slug"] in generate.CATALOGUE


def test_pages_hold_the_commands_that_a_newcomer_types() -> None:
    found = {line.split()[1] for page, line in commands() if page == "README.md"}
    assert {"doctor", "bench", "ask", "methods"} <= found


@each_page
def test_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`make ([a-z-]+)`", text)
    named += [
        line.split()[1] for body in blocks(page, "bash") for line in body.splitlines() if line.startswith("make ")
    ]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(named) <= targets


# -- code ------------------------------------------------------------------------------------------------------


@each_page
def test_python_blocks_compile_and_import_what_exists(page: Path) -> None:
    for body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


@each_page
def test_json_blocks_are_json_lines(page: Path) -> None:
    for body in blocks(page, "json"):
        for line in body.splitlines():
            assert isinstance(json.loads(line), dict)


def test_the_worked_example_of_a_method_runs(pebble: TorchModel, tmp_path: Path) -> None:
    method, test = blocks(ROOT / "CONTRIBUTING.md", "python")[:2]
    path = tmp_path / "question_budget.py"
    path.write_text(method)
    example = load(path, "worked_example")
    path = tmp_path / "example_test.py"
    path.write_text(test)
    example_test = load(path, "worked_example_test")
    vars(example_test).update(QuestionBudget=example.QuestionBudget, budget_for=example.budget_for)
    example_test.test_worked_numbers()
    example_test.test_the_thinking_ends_at_the_budget(pebble)
    with pytest.raises(ThriftyError, match="factor"):
        example.QuestionBudget(factor=-1.0)
    assert example.QuestionBudget(factor=0.0).controllers(pebble) == []
    with pytest.raises(UnknownName):
        get_method("question-budget")
    assert "question-budget" not in list_methods()


# -- contracts -------------------------------------------------------------------------------------------------


def first_column(page: Path, heading: str) -> set[str]:
    """Return what stands in code in the first column of the tables below a heading."""
    section = re.split(rf"^#+ {re.escape(heading)}$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    rows = re.findall(r"^\|([^|]*)\|", re.split(r"^#+ ", section, flags=re.MULTILINE)[0], re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", " ".join(rows)))


def test_the_guide_lists_what_summary_and_records_hold() -> None:
    trace = Trace("p", "vanilla", 0, 0, [], "eos", "model", usage=Usage(prompt=1))
    record = json.loads(trace.to_json()) | {"exit_reason": "model", "first_correct_tokens": None, "cost": {}}
    record |= {"question": "", "reference": ""}
    summary = summarise([record], {"methods": ["vanilla"]})
    guide = ROOT / "docs" / "guide.md"
    assert first_column(guide, "summary.json") == set(summary["methods"]["vanilla"])
    assert first_column(guide, "records.jsonl") == set(record)
    text = guide.read_text(encoding="utf-8")
    assert ", ".join(f"`{f.name}`" for f in fields(Usage)) in text
    assert all(f"`{key}`" in text for key in summary)


def test_the_guide_lists_the_settings_and_the_errors() -> None:
    guide = ROOT / "docs" / "guide.md"
    options = first_column(guide, "Settings")
    assert {f"--{f.name.replace('_', '-')}" for f in fields(Settings)} - {"--stop"} <= options
    known = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, ThriftyError)}
    assert first_column(guide, "Mistakes and exit codes") == known
    assert first_column(ROOT / "docs" / "models.md", "What a model gives") == {n.names[0] for n in Need}


# -- links and names -------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """Return a page without its code."""
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if path == ROOT / "docs" / "demo.png":  # drawn once the demo has run
            continue
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path), target


@each_page
def test_no_page_names_a_place_of_one_machine_or_a_download(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users|opt|var|mnt)/|\b[A-Z]:\\", text)
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= {"arxiv.org", "127.0.0.1", "localhost", "HOST"}


@each_page
def test_lines_are_of_plain_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert "\t" not in text
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)
