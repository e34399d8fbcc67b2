"""Draw the model card from measurements: ``python pebbles/card.py`` writes docs/pebbles.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thrifty.bench.statistics import wilson

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "<!-- Written by pebbles/card.py from the files in evidence/pebbles/: measure anew, then run `make docs`. -->"
FORMATS = ("long", "short", "plan", "code", "direct")


def share(right: int, n: int) -> str:
    """Return a percentage with its 95% interval."""
    low, high = wilson(right, n)
    return f"{100 * right / n:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def formats_table(levels: Mapping[str, Any]) -> str:
    """Accuracy and tokens of every format at every level."""
    rows = []
    for level, found in levels.items():
        for format in FORMATS:
            row = found["formats"][format]["all"]
            rows.append([level, format, share(row["right"], row["n"]), f"{row['tokens']:.0f}", str(row["n"])])
    return table(["level", "format", "right, %", "tokens", "problems"], rows)


def families_table(levels: Mapping[str, Any], format: str = "long") -> str:
    """Accuracy of one format by family and level."""
    families = sorted({name for found in levels.values() for name in found["formats"][format]} - {"all"})
    rows = []
    for family in families:
        cells = []
        for found in levels.values():
            row = found["formats"][format].get(family)
            cells.append(share(row["right"], row["n"]) if row else "")
        rows.append([family, *cells])
    return table(["family", *levels], rows)


def reflections_table(levels: Mapping[str, Any]) -> str:
    """What happens after the first answer."""
    rows = []
    for level, found in levels.items():
        seen, moves = found["reflections"], found["reflections"]["transitions"]
        rows.append(
            [
                level,
                share(seen["first_right"], seen["n"]),
                share(seen["final_right"], seen["n"]),
                f"{100 * seen['after_first_correct']:.0f}",
                str(moves["true_true"] + moves["false_same"]),
                str(moves["false_true"]),
                str(moves["true_false"]),
                f"{seen['entropy']:.3f}",
            ]
        )
    heads = ["level", "first answer right, %", "final answer right, %", "tokens after the first right answer, %"]
    return table([*heads, "confirm", "repair", "break", "entropy, nats"], rows)


def cuts_table(levels: Mapping[str, Any]) -> str:
    """Accuracy when the thinking is closed early."""
    shares = list(next(iter(levels.values()))["cuts"]["right"])
    rows = []
    for level, found in levels.items():
        n = found["cuts"]["n"]
        whole = found["reflections"]["final_right"], found["reflections"]["n"]
        rows.append([level, *(share(found["cuts"]["right"][s], n) for s in shares), share(*whole)])
    return table(["level", *(f"{float(s):.0%}" for s in shares), "whole"], rows)


def sampling_table(sampling: Mapping[str, Any]) -> str:
    """pass@1, pass@k and majority@k."""
    rows = [
        [t, f"{100 * s['pass_1']:.1f}", f"{100 * s['pass_k']:.1f}", f"{100 * s['majority_k']:.1f}", str(s["n"])]
        for t, s in sampling.items()
    ]
    k = next(iter(sampling.values()))["samples"]
    return table(["temperature", "pass@1, %", f"pass@{k}, %", f"majority@{k}, %", "problems"], rows)


def training_text(run: Mapping[str, Any]) -> str:
    """What the training took, and its curve."""
    rows = [[f"{tokens / 1e6:.1f}", f"{loss:.3f}"] for tokens, loss in run["curve"]]
    return (
        f"Trained on {run['tokens'] / 1e6:.1f} million tokens (data seed {run['seed']}, learning rate {run['lr']}, "
        f"{run['batch_tokens']} tokens a batch) in {run['seconds'] / 3600:.1f} hours on {run['machine']}. Loss in nats "
        "over the tokens learned from; the teacher's own choices are part of it and cannot be learned:\n\n"
        + table(["million tokens", *(tokens for tokens, _ in rows)], [["loss", *(loss for _, loss in rows)]])
    )


def section(name: str, found: Mapping[str, Any]) -> str:
    """Return the card of one model."""
    levels = found["levels"]
    return "\n\n".join(
        [
            f"## {name}",
            f"{found['parameters'] / 1e6:.2f} million parameters.",
            *([training_text(found["training"])] if "training" in found else []),
            f"Measured by `{found['command']}` in {found['seconds'] / 60:.0f} minutes; 95% intervals in brackets.",
            "### Formats\n\n" + formats_table(levels),
            "### Families, format long\n\n" + families_table(levels),
            "### Reflection\n\n"
            "Confirm, repair and break count moves from one stated answer to the next: the same answer, wrong to "
            "right, right to wrong.\n\n" + reflections_table(levels),
            "### Thinking cut after a share of its tokens: right, %\n\n" + cuts_table(levels),
            "### Sampling, default level\n\n" + sampling_table(found["sampling"]),
        ]
    )


def verifier_text(found: Mapping[str, Any]) -> str:
    """Return what the verifier is worth on the problems that its training held out."""
    made, worth = found["settings"], found["values"]
    places = worth["auroc_by_place"]
    return (
        "## pebble-verifier\n\nA head on pebble's hidden states: the probability that the final answer will be right, "
        f"after every step. Trained on rollouts of {made['problems']} problems of all levels with {made['cuts']} cuts "
        f"each and {made['continuations']} continuations a cut (temperature {made['temperature']}), by "
        f"`make pebble-verifier`. On {worth['held_out_problems']} problems held out ({worth['examples']:,} steps, mean "
        f"label {worth['mean_label']:.2f}): expected calibration error {worth['ece']:.3f}, AUROC {worth['auroc']:.2f}, "
        f"and {worth['auroc_within_problems']:.2f} among the steps of one problem, which is what a search goes by. "
        "AUROC by place in the response:\n\n" + table(list(places), [[f"{value:.2f}" for value in places.values()]])
    )


INTRODUCTION = """# The embedded models

Small reasoners that come with the package, so that everything can be tried, tested and measured without a
download. They were trained from nothing by `make pebbles` on problems of nine reasoning-gym families
with teacher traces that solve, check, repair and ruminate; how much they reflect does not depend on how hard a
problem is, which is the overthinking that methods are to remove. What is worth something in it: a first working is
hasty and forgets the carries of large numbers, which checks find and later workings do not repeat. A system prompt
chooses another format:

{prompts}

No question of a test split was trained on: a question's split is a hash of its text."""

LIMITS = """## What they cannot do

Everything else. They know nine kinds of problems in the words of their generators and nothing of the world; a
question in other words gets a trace of the nearest family. Of instructions they
know the five above and, in the words of the methods that use them, hints, outlines, budgets and strategies. Their
uncertainty, their slips and their reflections are real, but they are those of a model of a few million
parameters: a method that does nothing here may work on a large model, and the other way round."""


def card(measurements: Mapping[str, Mapping[str, Any]], verifier: Mapping[str, Any], history: str) -> str:
    """Return the whole card, with what is to be told about the training of these very weights."""
    from thrifty.models.formats import FORMAT_PROMPTS

    prompts = "\n".join(f'- `{name}`: "{text}"' for name, text in FORMAT_PROMPTS.items())
    sections = [section(name, found) for name, found in measurements.items()]
    return (
        "\n\n".join([NOTICE, INTRODUCTION.format(prompts=prompts), *sections, verifier_text(verifier), history, LIMITS])
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evidence", type=Path, default=ROOT / "evidence" / "pebbles")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pebbles.md")
    args = parser.parse_args()
    files = sorted(args.evidence.glob("*.json"))
    verifier = json.loads((ROOT / "src" / "thrifty" / "models" / "pebble" / "verifier.json").read_text())
    history = (args.evidence / "history.md").read_text().strip()
    args.out.write_text(card({path.stem: json.loads(path.read_text()) for path in files}, verifier, history))


if __name__ == "__main__":
    main()
