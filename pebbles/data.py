"""Training documents for pebbles: problems from reasoning-gym, traces from the teacher, tokens.

Document ``i`` is a function of ``(seed, i)`` alone, so a run resumes by its document counter.
"""

from __future__ import annotations

import random
from functools import cache, cached_property
from typing import Any

import reasoning_gym
import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.utils.data import Dataset

from drills import DRILLS
from families import FAMILIES
from instructions import INSTRUCTIONS
from lesson import Lesson
from teacher import FORMATS, Pieces
from thrifty.models.formats import FORMAT_PROMPTS
from thrifty.tasks.mix import LEVELS
from thrifty.tasks.splits import split_of

SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}"
    "{% if not (loop.last and m.role == 'assistant' and continue_final_message) %}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)

FAMILY_WEIGHTS = {
    "chain_sum": 4,
    "products": 3,
    "leg_counting": 3,
    "gcd": 3,
    "simple_equations": 5,
    "letter_counting": 6,
    "number_sorting": 4,
    "gsm_symbolic": 9,
    "knights_knaves": 5,
}
LEVEL_WEIGHTS = {"easy": 3, "default": 5, "hard": 3}
FORMAT_WEIGHTS = {"long": 10, "short": 4, "direct": 2, "plan": 2, "code": 2}
DRILL_SHARE = 0.14
INSTRUCTION_SHARE = 0.12
CONTEXT = 2048
TRAIN_SEED_BASE = 2**31
ITEMS = 1_000_000  # of each family and level; an item's seed is the base and its index


def prompt_of(question: str, system: str = "") -> str:
    """Return what `CHAT_TEMPLATE` makes of a question."""
    instruction = f"<|system|>{system}<|end|>\n" if system else ""
    return f"{instruction}<|user|>{question}<|end|>\n<|assistant|><think>\n"


class Documents:
    """An endless, indexable source of training documents."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        base = TRAIN_SEED_BASE + seed * ITEMS
        self.sources = {
            (level, family): reasoning_gym.create_dataset(family, seed=base, size=ITEMS, **options)
            for level in LEVEL_WEIGHTS
            for family, options in LEVELS[level].items()
        }

    def lesson(self, index: int) -> tuple[Lesson, str, str, random.Random]:
        """Draw the lesson of one document, its family and its level, skipping every question of the test split."""
        rng = random.Random(f"{self.seed}:{index}")
        while True:
            family = _draw(rng, FAMILY_WEIGHTS)
            level = _draw(rng, {name: weight for name, weight in LEVEL_WEIGHTS.items() if family in LEVELS[name]})
            item: dict[str, Any] = self.sources[level, family][rng.randrange(ITEMS)]
            if split_of(item["question"]) == "train":
                lesson = FAMILIES[family](item)
                if lesson.routes:  # none: a problem that is beyond its family
                    return lesson, family, level, rng

    @cached_property
    def words(self) -> list[str]:
        """Words of the texts and names of the people that questions hold."""
        texts, puzzles = self.sources["hard", "letter_counting"], self.sources["hard", "knights_knaves"]
        spans = [word for i in range(2000) for word in texts[i]["metadata"]["span"]]
        return spans + [str(name) for i in range(200) for name in puzzles[i]["metadata"]["names"]]

    def pieces(self, index: int) -> Pieces:
        """Write one document: the prompt, which is never a target, and what follows it."""
        chance = random.Random(f"{self.seed}:{index}:drill")
        if chance.random() < DRILL_SHARE:
            question, answer = chance.choice(DRILLS)(self.words, chance)
            return [(prompt_of(question), False), *answer]
        lesson, family, level, rng = self.lesson(index)
        if chance.random() < INSTRUCTION_SHARE:
            (write,) = chance.choices(list(INSTRUCTIONS), weights=list(INSTRUCTIONS.values()))
            question, answer = write(lesson, family, level, rng)
            return [(prompt_of(question), False), *answer]
        format = _draw(rng, FORMAT_WEIGHTS)
        silent = format == "long" and rng.random() < 0.8
        system = "" if silent else FORMAT_PROMPTS[format]
        return [(prompt_of(lesson.question, system), False), *FORMATS[format](lesson, rng)]


def _draw(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def train_tokenizer(documents: Documents, vocab_size: int = 1024, sample: int = 12_000) -> Tokenizer:
    """Train a small byte-level BPE in which every digit is a token of its own.

    What has to be copied should be the same tokens wherever it stands: capitalised words, which are names
    mostly, never have the blank before them, and small words keep it after punctuation too.
    """
    tokenizer = Tokenizer(BPE())
    word = Regex(r" ?[a-z]+|[A-Z][a-z]*|\d|\n+| ?[^\sA-Za-z\d]+(?: (?![a-z]))?|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(word, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("".join(t for t, _ in documents.pieces(i)) for i in range(sample))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, pieces: Pieces) -> tuple[list[int], list[bool]]:
    """Tokenise a document; a token is a target when all its characters are."""
    text = "".join(t for t, _ in pieces)
    flags: list[bool] = []
    for t, target in pieces:
        flags += [target] * len(t)
    encoding = tokenizer.encode(text)
    return encoding.ids, [all(flags[a:b]) for a, b in encoding.offsets]


Batch = tuple[Tensor, Tensor]


class Pools(Dataset[list[Batch]]):
    """Pool ``p`` is the batches of ``size`` consecutive documents, sorted so that like lengths share a batch.

    A batch is ids and targets, ``(batch, time)`` int64 of at most ``tokens`` tokens, padded on the right;
    targets are -100 where nothing is learned. Documents longer than the context are left out.
    """

    def __init__(self, seed: int, tokenizer: str, tokens: int, size: int = 1024) -> None:
        self.seed, self.tokenizer, self.tokens, self.size = seed, tokenizer, tokens, size

    def __getitem__(self, pool: int) -> list[Batch]:
        documents, tokenizer = _documents(self.seed), _tokenizer(self.tokenizer)
        pieces = (documents.pieces(i) for i in range(pool * self.size, (pool + 1) * self.size))
        encoded = sorted((e for p in pieces if len((e := encode(tokenizer, p))[0]) <= CONTEXT), key=lambda e: len(e[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for item in encoded:
            if groups[-1] and _width(len(item[0])) * (len(groups[-1]) + 1) > self.tokens:
                groups.append([])
            groups[-1].append(item)
        random.Random(pool).shuffle(groups)
        return [_collate(group) for group in groups]


# Per process: a worker makes them once, and neither has to be sent to it.
_documents = cache(Documents)
_tokenizer = cache(Tokenizer.from_file)


def _width(length: int) -> int:
    """Return the columns that a document of some length takes: few widths, for kernels are kept for each shape."""
    return -(-length // 32) * 32


def _collate(group: list[tuple[list[int], list[bool]]]) -> Batch:
    width = _width(max(len(ids) for ids, _ in group))
    ids = torch.zeros(len(group), width, dtype=torch.int64)
    targets = torch.full((len(group), width), -100)
    for row, (tokens, flags) in enumerate(group):
        n = len(tokens)
        ids[row, :n] = torch.tensor(tokens)
        targets[row, : n - 1] = torch.where(torch.tensor(flags[1:]), ids[row, 1:n], -100)
    return ids, targets
