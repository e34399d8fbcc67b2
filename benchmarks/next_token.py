"""What sparse attention changes of a model's predictions: the next tokens of real traces, read one by one.

A text is the traces of one file, one behind the other, as long as the context. Its beginning is read with full
attention, as every prompt is; of the tokens behind it each arm predicts one after the other, and reads the true one.
Counts how often the likeliest token is the true one. Prints a line for each arm and ends with one JSON line.

    python benchmarks/next_token.py --model FOLDER --traces TRACES.jsonl                  # SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from arms import against_full
from thrifty.decoding.session import Session
from thrifty.methods import get_method
from thrifty.models import load_model
from thrifty.models.torch import TorchModel

CHUNK = 512
"""Tokens that are read at once, which bounds the memory of the masks."""


def texts_of(model: TorchModel, path: Path, field: str, length: int, count: int) -> Iterator[list[int]]:
    """Yield the tokens of texts of so many traces that they are as long as wanted."""
    ids: list[int] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            ids += model.encode(json.loads(line)[field] + "\n\n")
            if len(ids) >= length:
                yield ids[:length]
                ids, count = [], count - 1
            if not count:
                return


def right(session: Session, behind: list[int]) -> list[bool]:
    """Return which of some tokens are the likeliest where they stand."""
    found = []
    for token in behind:
        found.append(int(session.logits[0].argmax()) == token)
        session.append(torch.tensor([token]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--traces", type=Path, required=True, help="a JSON-lines file")
    parser.add_argument("--field", default="trace", help="of its records, which holds the text")
    parser.add_argument("--context", type=int, default=7680, help="tokens that are read before")
    parser.add_argument("--tokens", type=int, default=256, help="of each text, predicted one by one")
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--methods", default="delta;delta(selector=random)", help="with ; between")
    args = parser.parse_args()
    model = load_model(args.model)
    assert isinstance(model, TorchModel)
    specs = ["full", *(spec for spec in args.methods.split(";") if spec)]
    shares: dict[str, list[float]] = {spec: [] for spec in specs}
    counts = {spec: [0, 0] for spec in specs}
    for number, ids in enumerate(texts_of(model, args.traces, args.field, args.context + args.tokens, args.texts)):
        plain = Session(model)
        plain.add([ids[:CHUNK]])
        for start in range(CHUNK, args.context, CHUNK):
            plain.append([ids[start : min(start + CHUNK, args.context)]])
        for spec in specs:
            (method,) = get_method("vanilla" if spec == "full" else spec).parts
            method.check(model)
            session = Session(model, method.attention(model))
            session.adopt(plain)
            found = right(session, ids[args.context :])
            shares[spec].append(sum(found) / len(found))
            if session.policy is not None:
                counts[spec][0] += session.held.rows[0].attended
                counts[spec][1] += session.held.rows[0].full
            print(f"text {number} {spec}: {shares[spec][-1]:.1%}", flush=True)
    about = {**vars(args), "traces": args.traces.name}
    print(json.dumps({"benchmark": "next_token", **about, "arms": against_full(shares, counts)}))


if __name__ == "__main__":
    main()
