"""What sparse attention still finds: numbers that stand in a long text, each asked for by itself.

A text has lines such as "Box 417 holds 4821 coins.", and many of its boxes are asked for. It is read once, with full
attention, as methods here read every prompt; each arm starts from those keys and values and writes its answers under
its own policy. Prints a line for each arm and ends with one JSON line.

    python benchmarks/recall.py --model FOLDER                        # SmolLM2-135M-Instruct
    python benchmarks/recall.py --model FOLDER --lines 200 --methods 'delta(pages=32);delta(pages=32,selector=random)'
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence

from arms import against_full
from thrifty.decoding.session import Session
from thrifty.methods import get_method
from thrifty.models import load_model
from thrifty.models.torch import TorchModel

CHUNK = 512
"""Tokens of the text that are read at once, which bounds the memory of the masks."""
ASK = "{text}\n\nHow many coins does box {box} hold? Answer in the words of its line."
METHODS = "delta(pages=20,recent=4);delta(pages=20,recent=4,selector=random)"


def boxes_of(rng: random.Random, lines: int) -> dict[int, int]:
    """Return what each box holds."""
    return {box: rng.randrange(1000, 10000) for box in rng.sample(range(100, 1000), lines)}


def prompts_of(model: TorchModel, boxes: dict[int, int], asked: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Return the tokens that all questions begin with, and what each adds to them."""
    text = "\n".join(f"Box {box} holds {coins} coins." for box, coins in boxes.items())
    prompts = [
        model.encode_prompt(model.render([{"role": "user", "content": ASK.format(text=text, box=box)}]))
        for box in asked
    ]
    shared = next(i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)
    return prompts[0][:shared], [prompt[shared:] for prompt in prompts]


def answers(session: Session, asked: Sequence[Sequence[int]], tokens: int) -> list[str]:
    """Return what greedy decoding adds to each row."""
    session.append(asked)
    written: list[list[int]] = [[] for _ in asked]
    for _ in range(tokens):
        newest = session.logits.argmax(-1)
        for ids, token in zip(written, newest.tolist(), strict=True):
            ids.append(token)
        session.append(newest)
    return [session.model.tokenizer.decode(ids) for ids in written]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--lines", type=int, default=150, help="of each text")
    parser.add_argument("--asked", type=int, default=30, help="questions about each text")
    parser.add_argument("--tokens", type=int, default=14, help="of each answer")
    parser.add_argument("--methods", default=METHODS, help="with ; between")
    args = parser.parse_args()
    model = load_model(args.model)
    assert isinstance(model, TorchModel)
    specs = ["full", *(spec for spec in args.methods.split(";") if spec)]
    right: dict[str, list[bool]] = {spec: [] for spec in specs}
    counts = {spec: [0, 0] for spec in specs}
    read: list[int] = []
    for number in range(args.texts):
        rng = random.Random(number)
        boxes = boxes_of(rng, args.lines)
        asked = rng.sample(list(boxes), args.asked)
        shared, added = prompts_of(model, boxes, asked)
        plain = Session(model)
        plain.add([shared[:CHUNK]])
        for start in range(CHUNK, len(shared), CHUNK):
            plain.append([shared[start : start + CHUNK]])
        read.append(len(shared))
        for spec in specs:
            policy = None
            if spec != "full":
                (method,) = get_method(spec).parts
                method.check(model)
                policy = method.attention(model)
            session = Session(model, policy)
            for _ in asked:
                session.adopt(plain)
            began = time.process_time()
            texts = answers(session, added, args.tokens)
            right[spec] += [str(boxes[box]) in text for box, text in zip(asked, texts, strict=True)]
            if policy is not None:
                counts[spec][0] += sum(row.attended for row in session.held.rows)
                counts[spec][1] += sum(row.full for row in session.held.rows)
            spent = time.process_time() - began
            print(f"text {number} {spec}: {sum(right[spec])} of {len(right[spec])}, {spent:.1f} s CPU", flush=True)
    print(json.dumps({"benchmark": "recall", **vars(args), "context": max(read), "arms": against_full(right, counts)}))


if __name__ == "__main__":
    main()
