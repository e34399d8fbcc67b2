"""Write the parts of the documentation that follow from the code and the evidence: ``make docs``.

    python docs/generate.py            # write what changed
    python docs/generate.py --check    # write nothing; exit 1 if anything would change

It fills the table of methods in README.md and the index in docs/methods.md; all else in these two is written by
hand and stays as it is. It writes docs/papers.md, docs/claims.md and a page for each method in docs/methods/, and
removes the pages of methods that are no more.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markup import code, markdown, read_docstring, replace_between, table

from thrifty.catalogue import CATALOGUE, Entry, status
from thrifty.errors import ThriftyError
from thrifty.methods import method_class
from thrifty.methods.base import FlowMethod, Method
from thrifty.spec import parse_spec, split_specs

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {
    "control": "Control: watch one stream and steer it",
    "collaborate": "Collaborate: several streams or several models at once",
    "latent": "Latent: think in embeddings",
    "attention": "Attention: look at less, keep less",
    "agents": "Agents: plan, call tools, talk",
    "rl": "RL: objectives that train shorter reasoners",
    "curation": "Curation: traces in, training data out",
    "vision": "Vision: fewer and better visual tokens",
    "fusion": "Fusion: several models into one",
    "tasks": "Tasks: benchmarks and what a result must report",
}
NOTICE = "<!-- Written by docs/generate.py: change the code or the evidence, then run `make docs`. -->"
CLAIM = ("measured", "n", "accuracy difference", "token ratio", "cap at the same tokens", "command", "finding")
"""The columns of what was measured."""


# -- What is known of a system ---------------------------------------------------------------------------------


def in_order() -> list[Entry]:
    """Return the catalogue, family by family; in each, what can be used now comes first."""
    families = list(FAMILIES)
    return sorted(CATALOGUE.values(), key=lambda e: (families.index(e.family), status(e) != "available", e.slug))


def available_methods() -> list[Entry]:
    """Return the methods that this package holds; those that other packages register are no part of its pages."""
    return [e for e in in_order() if e.module.startswith("thrifty.methods.") and status(e) == "available"]


def paper_link(entry: Entry, text: str | None = None) -> str:
    """Return a link to the paper of a system, a dash where there is none."""
    if entry.paper is None:
        return "-"
    return f"[{text or entry.paper.arxiv}](https://arxiv.org/abs/{entry.paper.arxiv})"


def file_link(path: Path, page: Path, text: str = "") -> str:
    """Return a link from a page to a file, a dash where there is no such file."""
    target = Path(os.path.relpath(path, page.parent)).as_posix()
    return f"[{text or path.name}]({target})" if path.exists() else "-"


def module_file(entry: Entry, root: Path) -> Path:
    """Return where the code of a system lies."""
    path = root / "src" / entry.module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_file(entry: Entry, root: Path) -> Path:
    """Return where the worked numbers of a system are tested."""
    return root / "tests" / "papers" / f"test_{entry.slug.replace('-', '_')}.py"


# -- The table of README.md ------------------------------------------------------------------------------------


def methods_table() -> str:
    """Return the table of all systems: those that can be used now first."""
    entries = sorted(in_order(), key=lambda e: status(e) != "available")
    return table(
        ("system", "family", "status", "needs", "headline claim, as its authors state it", "paper"),
        (
            (
                f"**{e.slug}**" if status(e) == "available" else e.slug,
                e.family,
                status(e),
                " ".join(e.needs.names),
                markdown(e.claim),
                paper_link(e),
            )
            for e in entries
        ),
    )


# -- docs/methods.md and docs/methods/ --------------------------------------------------------------------------


def composing(cls: type[Method]) -> str:
    """Say with what a method composes."""
    if cls.solve is not Method.solve:
        return "stands alone"
    return "composes with methods that steer" if issubclass(cls, FlowMethod) else "composes with `+`"


def methods_index() -> str:
    """Return the tables of the methods that can be run, family by family."""
    parts = []
    for family, title in FAMILIES.items():
        rows = []
        for entry in (e for e in available_methods() if e.family == family):
            cls = method_class(entry.slug)
            summary = read_docstring(inspect.getdoc(cls) or "")[0]
            link = f"[{entry.slug}](methods/{entry.slug}.md)"
            rows.append((link, summary, ", ".join(f"`{name}`" for name in entry.needs.names), composing(cls)))
        if rows:
            parts += [f"## {title}", table(("system", "what it does", "needs", "with others"), rows)]
    return "\n\n".join(parts)


def method_page(entry: Entry, evidence: Mapping[Path, Mapping[str, Any]], root: Path = ROOT) -> str:
    """Return the page of a method.

    Args:
        entry: of the catalogue.
        evidence: what was measured of it.
        root: of the repository.
    """
    page = root / "docs" / "methods" / f"{entry.slug}.md"
    cls = method_class(entry.slug)
    summary, paragraphs, options = read_docstring(inspect.getdoc(cls) or "")
    blocks = "works on think blocks" if cls.thinks else "works on any model"
    needs = ", ".join(f"`{name}`" for name in entry.needs.names)
    facts = [
        f"Family `{entry.family}` of the [methods that run](../methods.md).",
        f"Needs {needs}; {blocks}; {composing(cls)}.",
    ]
    if entry.paper is not None:
        facts.append(f"Paper: {paper_link(entry, markdown(entry.paper.title))} ({entry.paper.year}).")
    if entry.kind == "published":
        facts.append(f"Claim of its authors: {markdown(entry.claim)}.")
    files = [path for path in (module_file(entry, root), test_file(entry, root)) if path.exists()]
    facts.append(f"Files: {', '.join(file_link(path, page) for path in files)}.")
    fields = [(f"`{f.name}`", code(repr(f.default)), options.get(f.name, "")) for f in dataclasses.fields(cls)]
    parts = [NOTICE, f"# {entry.slug}", summary, *paragraphs, "\n".join(f"- {fact}" for fact in facts), "## Options"]
    parts += [table(("option", "default", "meaning"), fields) if fields else "None.", "## Measured here"]
    return "\n\n".join([*parts, *_measured(evidence, page)]) + "\n"


def _measured(evidence: Mapping[Path, Mapping[str, Any]], page: Path) -> list[str]:
    """Return a table of what was measured; the findings stand below it, for a narrow column is hard to read."""
    if not evidence:
        return ["Nothing is recorded yet."]
    rows = [_claim(path, values, page) for path, values in evidence.items()]
    findings = [f"{measured}: {finding}" for measured, *_, finding in rows if finding != "-"]
    return [
        "Against `vanilla` on the same problems; [claims.md](../claims.md) explains the columns.",
        table(CLAIM[:-1], (row[:-1] for row in rows)),
        *findings,
    ]


# -- docs/papers.md --------------------------------------------------------------------------------------------


def papers_page(root: Path = ROOT) -> str:
    """Return the index that leads from each paper to its code, its test and its evidence."""
    page = root / "docs" / "papers.md"
    evidence = evidence_by_slug(root)
    published = sum(e.kind == "published" for e in CATALOGUE.values())
    baselines = len(CATALOGUE) - published
    available = sum(status(e) == "available" for e in CATALOGUE.values())
    parts = [
        NOTICE,
        "# Papers",
        "From each system of the catalogue to its paper, its code, the test of its worked numbers and the evidence "
        f"of its effect. {published} published systems and {baselines} baselines; {available} of all are available. A "
        "dash stands for what does not exist.",
    ]
    for family, title in FAMILIES.items():
        rows = [
            (
                e.slug,
                paper_link(e, markdown(e.paper.title)) if e.paper else "-",
                file_link(module_file(e, root), page, f"`{e.module}`"),
                file_link(test_file(e, root), page),
                ", ".join(file_link(path, page) for path in evidence.get(e.slug, ())) or "-",
            )
            for e in in_order()
            if e.family == family
        ]
        parts += [f"## {title}", table(("system", "paper", "module", "test", "evidence"), rows)]
    return "\n\n".join(parts) + "\n"


# -- docs/claims.md --------------------------------------------------------------------------------------------


def read_evidence(root: Path = ROOT) -> dict[Path, dict[str, Any]]:
    """Return the evidence files in the order of their names.

    Raises:
        ThriftyError: a file is not a JSON object.
    """
    found = {}
    for path in sorted((root / "evidence").glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ThriftyError(f"evidence/{path.name} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ThriftyError(f"evidence/{path.name} must hold one JSON object")
        found[path] = values
    return found


def evidence_by_slug(root: Path = ROOT) -> dict[str, dict[Path, dict[str, Any]]]:
    """Return the evidence files of each system; that of a composition belongs to each of its parts."""
    found: dict[str, dict[Path, dict[str, Any]]] = {}
    for path, values in read_evidence(root).items():
        for part in split_specs(str(values.get("slug") or path.stem), "+"):
            found.setdefault(parse_spec(part)[0], {})[path] = values
    return found


def claims_page(root: Path = ROOT) -> str:
    """Return what was measured here, one row an evidence file."""
    parts = [
        NOTICE,
        "# What was measured here",
        "Effects against `vanilla` on the same problems, with 95% intervals. The accuracy difference is in points; the "
        "token ratio counts every token of the account, prompt and probes included. *Cap* is the accuracy of a plain "
        "cap on the thinking that spends as many tokens, beside the accuracy of the method. What the authors of a "
        "method claim stands in the [README](../README.md#the-systems); it is not measured here.",
    ]
    evidence = read_evidence(root)
    if not evidence:
        return "\n\n".join([*parts, "Nothing has been recorded yet: there is no file in `evidence/`."]) + "\n"
    page = root / "docs" / "claims.md"
    return "\n\n".join([*parts, table(CLAIM, (_claim(path, values, page) for path, values in evidence.items()))]) + "\n"


def _claim(path: Path, values: Mapping[str, Any], page: Path) -> tuple[str, ...]:
    """Return the cells of an evidence file, in the order of `CLAIM`."""
    result: Mapping[str, Any] = values.get("result") or {}
    title = markdown(str(values.get("title") or values.get("slug") or path.stem))
    where = " on ".join(code(str(values[key])) for key in ("model", "task") if values.get(key))
    measured = ", ".join(filter(None, (file_link(path, page, title), where, str(values.get("date") or ""))))
    n = values.get("n", result.get("n"))
    cap, accuracy = result.get("cap_accuracy_at_same_tokens"), result.get("accuracy")
    beside = f" (method {accuracy:.1%})" if cap is not None and accuracy is not None else ""
    return (
        measured,
        "-" if n is None else f"{n:,}",
        _with_interval(result, "accuracy_diff", "+.1f", 100),
        _with_interval(result, "token_ratio", ".2f"),
        "-" if cap is None else f"{cap:.1%}{beside}",
        code(" ".join(str(values["command"]).split())) if values.get("command") else "-",
        markdown(str(values.get("finding") or "-")),
    )


def _with_interval(result: Mapping[str, Any], key: str, form: str, scale: float = 1) -> str:
    value, ends = result.get(key), result.get(f"{key}_ci")
    if value is None:
        return "-"
    interval = f" ({' to '.join(format(scale * end, form) for end in ends)})" if ends else ""
    return f"{scale * value:{form}}{interval}"


# -- All of it -------------------------------------------------------------------------------------------------


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Return every page that is generated, in whole or in part, with the text that it should have."""
    readme, methods = root / "README.md", root / "docs" / "methods.md"
    evidence = evidence_by_slug(root)
    return {
        readme: replace_between(readme.read_text(encoding="utf-8"), "methods", methods_table()),
        methods: replace_between(methods.read_text(encoding="utf-8"), "index", methods_index()),
        root / "docs" / "papers.md": papers_page(root),
        root / "docs" / "claims.md": claims_page(root),
        **{
            root / "docs" / "methods" / f"{entry.slug}.md": method_page(entry, evidence.get(entry.slug, {}), root)
            for entry in available_methods()
        },
    }


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything would change")
    check = parser.parse_args(arguments).check
    try:
        wanted = pages(root)
    except ThriftyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = [page for page, text in wanted.items() if not page.exists() or page.read_text(encoding="utf-8") != text]
    for page in stale:
        print(f"{'out of date' if check else 'wrote'}: {page.relative_to(root).as_posix()}")
        if not check:
            page.parent.mkdir(exist_ok=True)
            page.write_text(wanted[page], encoding="utf-8")
    # The notice tells what was written here from what somebody put there by hand.
    gone = [
        page
        for page in sorted((root / "docs" / "methods").glob("*.md"))
        if page not in wanted and page.read_text(encoding="utf-8").startswith(NOTICE)
    ]
    for page in gone:
        print(f"{'out of date' if check else 'removed'}: {page.relative_to(root).as_posix()}")
        if not check:
            page.unlink()
    return int(check and bool(stale or gone))


if __name__ == "__main__":
    sys.exit(main())
