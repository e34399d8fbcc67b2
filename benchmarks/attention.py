"""Decode time and attended tokens under attention policies, against full attention: ``python benchmarks/attention.py``.

The model is random and made on the spot, by default of SmolLM2-135M's shape: what is measured does not depend on
what a model says. Every arm decodes in turn, round after round, and is compared within its round, so that a
machine whose speed drifts cannot favour anyone. Prints a line for each arm and context and ends with one JSON line.

    python benchmarks/attention.py                                            # 135M parameters
    python benchmarks/attention.py --device cuda --dtype bfloat16 --layers 24 --hidden 2048 --batch 8   # 1.1B
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from thrifty.decoding.session import Session
from thrifty.methods import get_method
from thrifty.models import embedded_folder
from thrifty.models.torch import DTYPES, TorchModel

HEAD = 64
CHUNK = 512
"""Tokens of the context that are read at once, which bounds the memory of the masks."""


def random_model(args: argparse.Namespace) -> TorchModel:
    """Return a random Llama; three query heads share a key-value head, as in SmolLM2-135M."""
    heads = args.hidden // HEAD
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate or args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=args.kv_heads or max(1, heads // 3),
        max_position_embeddings=2 * max(args.contexts),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(args.device):
        network = LlamaForCausalLM(config).to(DTYPES[args.dtype]).eval()
    return TorchModel(network, AutoTokenizer.from_pretrained(embedded_folder("pebble")), "random")


def filled(model: TorchModel, context: int, rows: int) -> Session:
    """Return a session of rows that have read a context of random tokens."""
    tokens = torch.randint(2, 600, (rows, context), generator=torch.Generator().manual_seed(1)).tolist()
    session = Session(model)
    session.add([row[:CHUNK] for row in tokens])
    for start in range(CHUNK, context, CHUNK):
        session.append([row[start : start + CHUNK] for row in tokens])
    return session


def seconds(session: Session, steps: int, device: str) -> float:
    """Decode some steps; return seconds: of the wall on an accelerator, else of this process's CPU, which is shared."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    ids = torch.arange(3, 3 + len(session), device=device)
    started = clock()
    for _ in range(steps):
        session.append(ids)
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


def measure(model: TorchModel, args: argparse.Namespace, context: int) -> dict[str, dict[str, Any]]:
    """Return for each arm milliseconds a token, its speed against full attention, and what it attended to."""
    plain = filled(model, context, args.batch)
    sessions = {"full": Session(model)}
    for spec in args.methods:
        (method,) = get_method(spec).parts
        method.check(model)
        sessions[spec] = Session(model, method.attention(model))
    for session in sessions.values():
        session.adopt(plain)
        seconds(session, args.warm_up, args.device)  # and what evicts has done so for the first time
    before = {name: [(row.attended, row.full) for row in session.held.rows] for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(args.rounds):
        for name in sessions if number % 2 == 0 else reversed(sessions):
            times[name].append(seconds(sessions[name], args.steps, args.device))
    found: dict[str, dict[str, Any]] = {}
    for name, session in sessions.items():
        ratios = [full / mine for full, mine in zip(times["full"], times[name], strict=True)]
        found[name] = {
            "ms_per_token": round(1000 * statistics.median(times[name]) / args.steps / args.batch, 3),
            "speed": round(statistics.median(ratios), 3),
            "rounds": [round(min(ratios), 3), round(max(ratios), 3)],
            "attended": 1.0,
            "entries": session.lengths[0],
        }
        if session.policy is not None:
            counts = [
                (row.attended - a, row.full - f) for row, (a, f) in zip(session.held.rows, before[name], strict=True)
            ]
            found[name]["attended"] = round(sum(a for a, _ in counts) / sum(f for _, f in counts), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--contexts", default="1024,4096,8192", help="tokens that are read before decoding")
    parser.add_argument("--methods", default="delta;lazyeviction(budget=0.5,window=64)", help="with ; between")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16, help="tokens of each row in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=64, help="steps before the first round")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=576, help=f"a multiple of {HEAD}, the size of a head")
    parser.add_argument("--intermediate", type=int, default=0, help="0 for 8/3 of hidden")
    parser.add_argument("--kv-heads", type=int, default=0, help="0 for a third of the heads")
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    args = parser.parse_args()
    args.contexts = [int(context) for context in args.contexts.split(",")]
    args.methods = [spec for spec in args.methods.split(";") if spec]
    model = random_model(args)
    result = {}
    for context in args.contexts:
        result[str(context)] = measure(model, args, context)
        for name, found in result[str(context)].items():
            print(
                f"{context:>6} {name:<42}{found['ms_per_token']:>9.3f} ms a token {found['speed']:>7.3f}x "
                f"(rounds {found['rounds'][0]:.3f} to {found['rounds'][1]:.3f}) {found['attended']:>8.1%} attended",
                flush=True,
            )
    about = {
        "benchmark": "attention",
        "parameters": model.parameters,
        "layers": args.layers,
        "batch": args.batch,
        "device": torch.cuda.get_device_name() if args.device != "cpu" else platform.machine(),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({**about, "contexts": result}))


if __name__ == "__main__":
    main()
