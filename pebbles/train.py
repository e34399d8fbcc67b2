"""Train a pebble from nothing: ``python pebbles/train.py --out DIR``.

Plain PyTorch in one file. Muon for the matrices, AdamW for the rest; warm-up, constant, linear decay.
The run is a function of its arguments: kill it anywhere, start it again with the same arguments, and it
goes on from the last checkpoint. At the end DIR holds a transformers model folder.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public in the documentation
from torch.utils.data import DataLoader

from data import CHAT_TEMPLATE, Documents, Pools, train_tokenizer
from network import Network, Shape


def optimizers(network: Network, lr: float, fused: bool) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in network.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in network.named_parameters() if p.dim() != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
    return [muon, adamw]


def learning_rate_factor(done: float, warmup: float = 0.01, decay: float = 0.3) -> float:
    """Return the factor on the learning rate when ``done`` of the run (0 to 1) is over."""
    return max(0.02, min(1.0, done / warmup, (1.0 - done) / decay))


def export(network: Network, tokenizer: Tokenizer, out: Path) -> None:
    """Write a transformers model folder: fp16 weights, config, tokenizer with its chat template."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().to("cpu", torch.float16).contiguous() for n, p in network.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = {**network.shape.transformers_config(), **ids}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps({**ids, "do_sample": False}, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": network.shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


@dataclass
class Progress:
    """How far a run is: tokens trained on (padding counted), the next pool of documents, seconds of training."""

    tokens: int = 0
    pool: int = 0
    seconds: float = 0.0


class Team:
    """The processes that train together; alone unless ``WORLD_SIZE`` says otherwise (as torchrun sets it).

    Every process reads every batch; its pieces of some rows go to whoever is free, so that a process
    which has to share its core slows the others down little.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        if self.size > 1:
            torch.distributed.init_process_group("gloo")
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]) + 1
            self.store = TCPStore(host, port, is_master=self.first)

    @property
    def first(self) -> bool:
        """Whether this process logs and saves."""
        return self.size == 1 or torch.distributed.get_rank() == 0

    def pieces(self, name: str, ids: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pieces of a batch that this process has to work on."""
        if self.size == 1:
            yield ids, targets
            return
        rows = max(1, 1024 // ids.shape[1])
        pairs = list(zip(torch.split(ids, rows), torch.split(targets, rows), strict=True))
        while (taken := self.store.add(name, 1)) <= len(pairs):
            yield pairs[taken - 1]
        if taken == len(pairs) + self.size:
            self.store.delete_key(name)

    def add_up(self, network: Network, total: Tensor) -> float:
        """Sum gradients and the loss over the processes; return the loss."""
        if self.size > 1:
            for p in network.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            flat = torch.cat([total.reshape(1), *(g.reshape(-1) for g in gradients)])
            torch.distributed.all_reduce(flat)
            total = flat[0]
            parts = torch.split(flat[1:], [g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return total.item()


def train(args: argparse.Namespace) -> None:
    """Train, or go on training, until ``args.tokens`` tokens have been seen; see the module's docstring."""
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    team = Team()
    tokenizer_file = Path(args.tokenizer or out / "tokenizer.json")
    if not tokenizer_file.exists():
        train_tokenizer(Documents(args.seed)).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    shape = Shape(
        tokenizer.get_vocab_size(),
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 128,
        intermediate_size=args.hidden * 11 // 4,
    )
    network = Network(shape).to(device)
    steppers = optimizers(network, args.lr, fused=True)
    progress = Progress()
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        network.load_state_dict(state["network"])
        for stepper, saved in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(saved)
        progress = Progress(**state["counters"])

    def save() -> None:
        temporary = checkpoint.with_suffix(".tmp")
        optimizer_states = [s.state_dict() for s in steppers]
        torch.save(
            {"network": network.state_dict(), "optimizers": optimizer_states, "counters": asdict(progress)}, temporary
        )
        temporary.replace(checkpoint)
        export(network, tokenizer, out)
        machine = (
            torch.cuda.get_device_name() if device.type == "cuda" else f"{team.size} of {os.cpu_count()} CPU cores"
        )
        told = {"seed": args.seed, "lr": args.lr, "batch_tokens": args.batch_tokens, "machine": machine}
        (out / "training.json").write_text(json.dumps({**told, **asdict(progress)}, indent=1) + "\n")

    def step(name: str, ids: Tensor, targets: Tensor) -> float:
        """Learn from one batch and return its loss in nats per target."""
        total = torch.zeros((), device=device)
        count = (targets != -100).sum().item()
        for piece, wanted in team.pieces(name, ids, targets):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = network.loss(piece.to(device), wanted.to(device))
            (loss / count).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach() / count
        mean = team.add_up(network, total)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = args.lr * learning_rate_factor((progress.tokens + 1) / args.tokens)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        return mean

    print(json.dumps({"parameters": sum(p.numel() for p in network.parameters()), **asdict(progress)}), flush=True)
    log = (out / "log.jsonl").open("a")
    started, saved_at = time.time() - progress.seconds, time.time()
    pools = DataLoader(
        Pools(args.seed, str(tokenizer_file), args.batch_tokens),
        batch_size=None,
        sampler=range(progress.pool, 10**9),
        num_workers=args.workers,
    )
    for pool in pools:
        if progress.tokens >= args.tokens:
            break
        losses = []
        for i, (ids, targets) in enumerate(pool):
            losses.append(step(f"{progress.pool}:{i}", ids, targets))
            progress.tokens += ids.numel()
        # only here may a run be resumed, so that it sees each document exactly once
        progress.pool += 1
        progress.seconds = time.time() - started
        if not team.first:
            continue
        print(json.dumps({**asdict(progress), "loss": sum(losses) / len(losses)}), file=log, flush=True)
        if time.time() - saved_at > args.checkpoint_seconds:
            save()
            saved_at = time.time()
    if team.first:
        save()
        print(json.dumps({"done": True, **asdict(progress)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for the model, its checkpoint and its log")
    parser.add_argument("--tokens", type=int, default=16_000_000, help="length of the run in tokens, padding counted")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", help="tokenizer.json to share with another pebble; made if there is none")
    parser.add_argument("--workers", type=int, default=0, help="processes that make the documents; for a GPU")
    parser.add_argument("--checkpoint-seconds", type=float, default=120)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
