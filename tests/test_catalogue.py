"""The catalogue: complete, well formed, true to the method cards where they are at hand, and light to import."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from thrifty.catalogue import CATALOGUE, Entry, Family, Need, listing, status
from thrifty.errors import UnknownName

CARDS = Path(__file__).parents[2] / "shared" / "methods"
PUBLISHED = [entry for entry in CATALOGUE.values() if entry.kind == "published"]
BASELINES = {slug for slug, entry in CATALOGUE.items() if entry.kind == "baseline"}
FOLDERS = {
    "control": {"thrifty.methods.control"},
    "collaborate": {"thrifty.methods.collaborate"},
    "latent": {"thrifty.methods.latent", "thrifty.training.latent"},
    "attention": {"thrifty.methods.attention"},
    "agents": {"thrifty.methods.agents"},
    "rl": {"thrifty.training.objectives"},
    "curation": {"thrifty.curation"},
    "vision": {"thrifty.vision"},
    "fusion": {"thrifty.training"},
    "tasks": {"thrifty.tasks"},
}

each = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE.keys())
each_published = pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.slug)
with_cards = pytest.mark.skipif(not CARDS.is_dir(), reason="the method cards are not beside this repository")


def entry_for(module: str) -> Entry:
    """Return an entry whose module is the given one."""
    return Entry("x", "control", Need.TEXT, "a claim", None, "published", module)


def card(slug: str) -> str:
    """Return the card's text, with thousands written without commas."""
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", (CARDS / f"{slug}.md").read_text(encoding="utf-8"))


def test_seventy_systems_and_the_baselines() -> None:
    assert len(PUBLISHED) == 70
    assert {"vanilla", "no-think", "cap", "s1", "majority", "best-of-n", "particle-filtering"} <= BASELINES


def test_keys_are_the_slugs_in_order() -> None:
    assert list(CATALOGUE) == sorted(entry.slug for entry in CATALOGUE.values())
    assert all(slug == entry.slug for slug, entry in CATALOGUE.items())


def test_every_family_has_a_system() -> None:
    assert {entry.family for entry in PUBLISHED} == set(get_args(Family)) == set(FOLDERS)


def test_no_paper_is_listed_twice() -> None:
    papers = [entry.paper.arxiv for entry in CATALOGUE.values() if entry.paper]
    assert len(papers) == len(set(papers))


@each
def test_entry_is_well_formed(entry: Entry) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.slug)
    assert entry.needs
    assert entry.claim == entry.claim.strip() != ""
    assert len(entry.claim.splitlines()) == 1
    assert len(entry.claim) <= 130


@each
def test_module_is_the_slug_in_a_folder_of_the_family(entry: Entry) -> None:
    folder, _, name = entry.module.rpartition(".")
    assert name == entry.slug.replace("-", "_")
    assert name.isidentifier()
    assert folder in FOLDERS[entry.family]


@each
def test_paper_is_whole(entry: Entry) -> None:
    if entry.paper is None:
        assert entry.kind == "baseline"
        return
    assert entry.paper.title.strip()
    assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.paper.arxiv)
    assert entry.paper.year == 2000 + int(entry.paper.arxiv[:2])


@pytest.mark.parametrize(
    ("slug", "arxiv", "year"),
    [
        ("cgrs", "2508.05337", 2025),
        ("rewoo", "2305.18323", 2023),
        ("tokenpacker", "2407.02392", 2024),
        ("long-range-arena", "2011.04006", 2020),
        ("no-think", "2504.09858", 2025),
        ("s1", "2501.19393", 2025),
    ],
)
def test_known_papers(slug: str, arxiv: str, year: int) -> None:
    paper = CATALOGUE[slug].paper
    assert paper is not None
    assert (paper.arxiv, paper.year) == (arxiv, year)


@pytest.mark.parametrize("family", ["rl", "fusion"])
def test_training_families_need_weights(family: str) -> None:
    assert all(Need.WEIGHTS in entry.needs for entry in PUBLISHED if entry.family == family)


@with_cards
def test_slugs_are_those_of_the_cards() -> None:
    assert {entry.slug for entry in PUBLISHED} == {path.stem for path in CARDS.glob("*.md")}


@with_cards
@each_published
def test_paper_is_the_one_of_the_card(entry: Entry) -> None:
    source = next(line for line in card(entry.slug).splitlines() if line.startswith("Source:"))
    assert entry.paper is not None
    assert entry.paper.title in source
    first = re.search(r"\d{4}\.\d{5}", source)
    assert first is not None
    assert first.group() == entry.paper.arxiv


@with_cards
@each_published
def test_numbers_of_the_claim_stand_in_the_card(entry: Entry) -> None:
    known = set(re.findall(r"\d+(?:\.\d+)?", card(entry.slug)))
    claimed = re.findall(r"\d+(?:\.\d+)?", entry.claim)
    assert set(claimed) - known == set()


def test_a_module_that_is_there_is_available() -> None:
    assert status(entry_for("thrifty.catalogue")) == "available"


@pytest.mark.parametrize(
    "module",
    [
        "thrifty.methods.control.no_such_system",  # no such file
        "thrifty.no_such_room.no_such_system",  # no such folder
        "thrifty.errors.no_such_system",  # a file where a folder is expected
    ],
)
def test_a_module_that_is_not_there_is_planned(module: str) -> None:
    assert status(entry_for(module)) == "planned"


def test_a_folder_without_code_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalogue_probe" / "bare").mkdir(parents=True)
    (tmp_path / "catalogue_probe" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert status(entry_for("catalogue_probe.bare")) == "planned"


def test_status_does_not_import_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalogue_bomb.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert status(entry_for("catalogue_bomb")) == "available"
    assert "catalogue_bomb" not in sys.modules


def test_a_broken_package_is_not_taken_for_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalogue_broken").mkdir()
    (tmp_path / "catalogue_broken" / "__init__.py").write_text("import no_such_library", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        status(entry_for("catalogue_broken.system"))


def test_listing_has_a_plain_row_for_each_entry() -> None:
    rows = listing()
    assert len(rows) == len(CATALOGUE)
    assert all(set(row) == {"slug", "title", "arxiv", "family", "needs", "claim", "status", "kind"} for row in rows)
    assert [(row["family"], row["slug"]) for row in rows] == sorted((row["family"], row["slug"]) for row in rows)
    cgrs = next(row for row in rows if row["slug"] == "cgrs")
    assert cgrs["needs"] == ["logits", "kv"]
    assert cgrs["arxiv"] == "2508.05337"
    assert cgrs["title"].endswith("Certainty-Guided Reflection Suppression")
    vanilla = next(row for row in rows if row["slug"] == "vanilla")
    assert (vanilla["title"], vanilla["arxiv"], vanilla["kind"]) == ("", "", "baseline")


def test_listing_of_one_family() -> None:
    rows = [row for row in listing("attention") if row["kind"] == "published"]
    assert [row["slug"] for row in rows] == ["delta", "kvshare", "lazyeviction"]


def test_listing_of_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"'atention'.*attention.*vision"):
        listing("atention")  # type: ignore[arg-type]  # the mistake under test


def test_importing_the_catalogue_loads_nothing_heavy() -> None:
    code = (
        "import sys; from thrifty.catalogue import listing; listing(); "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )
    assert done.stdout.strip() == "[]"
