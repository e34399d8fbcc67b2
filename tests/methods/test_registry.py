"""Names, options and composition of methods as users write them; methods of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar

import pytest

import thrifty.methods as registry
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods import expand_families, family_methods, get_method, list_methods
from thrifty.methods.base import Method
from thrifty.models.replay import load_replay
from thrifty.models.torch import TorchModel


def test_specs_round_trip() -> None:
    for spec in ("cap(budget=200)", "cgrs(delta=0.8)+first-try", "s1(minimum=5,maximum=9,extension='Hmm')"):
        method = get_method(spec)
        assert get_method(method.spec).parts == method.parts
    assert get_method("cgrs(delta=0.9)").spec == "cgrs"
    assert get_method("cgrs(delta=1)").parts[0].delta == 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cgr", "Did you mean cgrs"),
        ("sim-cot", "planned"),
        ("cap(budge=3)", "budget"),
        ("cap(budget=many)", "is a int"),
        ("cap(budget=-5)", "at least 0"),
        ("cap(budget=3", "cap"),
        ("cap+cap", "twice"),
        ("s1(minimum=9,maximum=3)", "must not be below"),
        ("", "cannot read"),
    ],
)
def test_mistakes_get_one_line(spec: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(spec)
    assert "\n" not in str(mistake.value)


class Foreign(Method):
    """A method of another package."""

    slug: ClassVar[str] = "foreign"


def test_methods_of_other_packages_register_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("foreign", f"{__name__}:Foreign", registry.ENTRY_POINT_GROUP),
            EntryPoint("broken", f"{__name__}:pytest", registry.ENTRY_POINT_GROUP),
        ]
    )

    def fake(group: str) -> Any:
        return points.select(group=group)

    monkeypatch.setattr(registry, "entry_points", fake)
    monkeypatch.setattr(registry, "_plugins", registry._plugins.__wrapped__)
    assert "foreign" in list_methods()
    assert get_method("foreign+cap").spec == "foreign+cap"
    with pytest.raises(ThriftyError, match="no Method"):
        get_method("broken")
    with pytest.raises(UnknownName):
        get_method("absent")


def test_a_family_stands_for_its_methods(pebble: TorchModel) -> None:
    kept, reasons = expand_families(["cgrs", "family:control", "majority"], pebble)
    assert kept[0] == "cgrs"
    assert kept[-1] == "majority"
    assert len(kept) == len(set(kept))
    assert set(kept[:-1]) | {reason.split()[0] for reason in reasons} == set(family_methods("control"))
    assert "vanilla" not in kept
    assert {"diffadapt", "tldr", "concisehint", "thoughtmani", "plan-and-budget"} <= set(family_methods("control"))


def test_a_family_leaves_out_what_a_model_has_no_access_for(tmp_path: Path) -> None:
    recorded = tmp_path / "traces.jsonl"
    recorded.write_text('{"question": "1+1?", "answer": "2", "response": "<think>2</think>2", "model": "m"}\n')
    kept, reasons = expand_families(["family:control"], load_replay(str(recorded)))
    assert "cgrs" not in kept
    assert any("cgrs" in reason for reason in reasons)


def test_there_is_no_such_family(pebble: TorchModel) -> None:
    with pytest.raises(UnknownName, match="Did you mean control"):
        expand_families(["family:contrl"], pebble)
