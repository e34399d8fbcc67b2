"""The published systems that thrifty gathers, one entry each, and the words that describe them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto
from importlib.util import find_spec
from typing import Literal, TypedDict

from thrifty.errors import UnknownName


class Need(Flag):
    """Access to a model that a method needs or a model gives."""

    NONE = 0
    TEXT = auto()
    """Messages in, text out."""
    SAMPLING = auto()
    """Continue any prefix token by token: force tokens, stop anywhere."""
    LOGPROBS = auto()
    """Log-probabilities of the tokens that were chosen."""
    LOGITS = auto()
    """The whole next-token distribution at every step, before sampling."""
    HIDDEN = auto()
    """Hidden states."""
    EMBEDDINGS = auto()
    """Vectors instead of tokens as input."""
    KV = auto()
    """The key-value cache: fork it, rewind it, thin it."""
    WEIGHTS = auto()
    """The parameters, to train them."""

    @property
    def names(self) -> list[str]:
        """The single flags, lower case."""
        return [n.name.lower() for n in self if n.name]


Family = Literal[
    "control", "collaborate", "latent", "attention", "agents", "rl", "curation", "vision", "fusion", "tasks"
]


@dataclass(frozen=True)
class Paper:
    """Where a system was published.

    Attributes:
        title: of the paper.
        arxiv: its arXiv id, empty where there is none.
        year: of the first version.
    """

    title: str
    arxiv: str
    year: int


@dataclass(frozen=True)
class Entry:
    """One system of the catalogue.

    Attributes:
        slug: its public name.
        family: the family whose folder holds it.
        needs: the access to a model that it needs.
        claim: the headline result as its authors state it, one line.
        paper: where it was published, None for a baseline without a paper.
        kind: ``published`` for the listed systems, ``baseline`` for what they are compared with.
        module: where its code lives or will live, such as ``thrifty.methods.control.cgrs``.
    """

    slug: str
    family: Family
    needs: Need
    claim: str
    paper: Paper | None
    kind: Literal["published", "baseline"]
    module: str


_FOLDERS: dict[Family, str] = {
    "control": "thrifty.methods.control",
    "collaborate": "thrifty.methods.collaborate",
    "latent": "thrifty.methods.latent",
    "attention": "thrifty.methods.attention",
    "agents": "thrifty.methods.agents",
    "rl": "thrifty.training.objectives",
    "curation": "thrifty.curation",
    "vision": "thrifty.vision",
    "fusion": "thrifty.training",
    "tasks": "thrifty.tasks",
}
_LATENT_TRAINING = "thrifty.training.latent"


def _entry(
    slug: str,
    family: Family,
    needs: Need,
    arxiv: str,
    title: str,
    claim: str,
    *,
    kind: Literal["published", "baseline"] = "published",
    folder: str = "",
) -> Entry:
    """Make an entry.

    Args:
        slug: its public name.
        family: its family.
        needs: the access that it needs.
        arxiv: the id of its paper, empty where there is none; its first two digits are the year of the first version.
        title: of the paper, empty where there is none.
        claim: one line.
        kind: published or baseline.
        folder: the package that holds its module, empty for the folder of the family.

    Returns:
        The entry; its module is the slug with underscores.
    """
    paper = Paper(title, arxiv, 2000 + int(arxiv[:2])) if arxiv else None
    module = f"{folder or _FOLDERS[family]}.{slug.replace('-', '_')}"
    return Entry(slug, family, needs, claim, paper, kind, module)


# Needs are the least access with which a system's main form works:
# - a curator's are those of `curate`; training on the records that it writes is another step, with its own needs;
# - a helper model's (judge, scorer, planner) are not counted;
# - maps of attention count as KV, since the hook that reads them is the one that thins the cache;
# - entropies count as LOGITS, since log-probabilities of the chosen tokens don't give them.
# Claims are quoted, not measured here. Three lines an entry keep the list readable, hence no formatter.
# fmt: off
_ENTRIES: tuple[Entry, ...] = (
    # Baselines: what the others are compared with.
    _entry("vanilla", "control", Need.TEXT, "",
           "",
           "the model as it is", kind="baseline"),
    _entry("no-think", "control", Need.SAMPLING, "2504.09858",
           "Reasoning Models Can Be Effective Without Thinking",
           "an empty think block, then the answer", kind="baseline"),
    _entry("cap", "control", Need.SAMPLING, "",
           "",
           "a hard budget: the thinking is closed when it is spent", kind="baseline"),
    _entry("s1", "control", Need.SAMPLING, "2501.19393",
           "s1: Simple test-time scaling",
           "budget forcing: the thinking is closed at a budget, or prolonged with 'Wait'", kind="baseline"),
    _entry("majority", "collaborate", Need.TEXT, "2203.11171",
           "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
           "a vote over several samples", kind="baseline"),
    _entry("best-of-n", "collaborate", Need.TEXT, "2110.14168",
           "Training Verifiers to Solve Math Word Problems",
           "of several samples the one that a scorer likes best", kind="baseline"),
    _entry("particle-filtering", "collaborate", Need.SAMPLING, "2502.01618",
           "Rollout Roulette: A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using "
           "Particle-Based Monte Carlo Methods",
           "4x to 16x better scaling than deterministic search; Qwen2.5-Math-1.5B above GPT-4o with 4 rollouts",
           kind="baseline"),
    _entry("prompt-lookup", "collaborate", Need.LOGITS | Need.KV, "",
           "",
           "what followed the same words before is drafted: 2x to 4x faster where texts repeat their prompt",
           kind="baseline"),
    _entry("sliding-window", "attention", Need.KV, "2309.17453",
           "Efficient Streaming Language Models with Attention Sinks",
           "keys and values of the first few tokens and of the newest ones only", kind="baseline"),
    _entry("h2o", "attention", Need.KV, "2306.14048",
           "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
           "keys and values of the newest tokens and of those attended to most so far", kind="baseline"),
    _entry("random-eviction", "attention", Need.KV, "",
           "",
           "keys and values of the prompt, of the newest tokens, and of others at random", kind="baseline"),

    # Control: watch one stream and steer it.
    _entry("arm", "control", Need.SAMPLING, "2505.20258",
           "ARM: Adaptive Reasoning Model",
           "7B, average of 7 sets: 72.0% with 766 tokens, against 73.2% with 1173 after SFT and GRPO"),
    _entry("cgrs", "control", Need.LOGITS | Need.KV, "2508.05337",
           "Efficient Reasoning for Large Reasoning Language Models via Certainty-Guided Reflection Suppression",
           "18.5% to 41.9% shorter on all 8 models, within about 3 points of accuracy"),
    _entry("concisehint", "control", Need.SAMPLING, "2506.18810",
           "ConciseHint: Boosting Efficient Reasoning via Continuous Concise Hints during Generation",
           "Qwen3-4B on GSM8K: 2381 -> 1213 tokens at 94.81% -> 94.74%; with a concise prompt 839 tokens (-65%)"),
    _entry("diffadapt", "control", Need.TEXT | Need.HIDDEN, "2510.19669",
           "DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference",
           "Qwen3-4B: 22.4% fewer tokens than one fixed strategy (DEER: 27.5% more); 10 minutes instead of 64"),
    _entry("e2c", "control", Need.SAMPLING, "2509.23946",
           "Explore-Execute Chain: Towards an Efficient Structured Reasoning Paradigm",
           "58.1% on AIME24 with less than 10% of the tokens of Forest-of-Thought-like search"),
    _entry("first-try", "control", Need.SAMPLING, "2510.08308",
           "First Try Matters: Revisiting the Role of Reflection in Reasoning Models",
           "Qwen3-8B, average of 5 sets: 24.5% fewer thinking tokens, accuracy 84.7% -> 81.8%"),
    _entry("latent-trajectory", "control", Need.SAMPLING | Need.HIDDEN, "2510.10494",
           "Tracing the Traces: Latent Temporal Signals for Efficient and Accurate Reasoning",
           "48% fewer tokens and +2.46 points on average, against a majority vote of 5 samples"),
    _entry("metacognitive-reuse", "control", Need.TEXT, "2509.13237",
           "Metacognitive Reuse: Turning Recurring LLM Reasoning Into Concise Behaviors",
           "up to 46% fewer reasoning tokens on MATH-500 at equal or better accuracy"),
    _entry("plan-and-budget", "control", Need.TEXT, "2505.16122",
           "Plan and Budget: Effective and Efficient Test-Time Scaling on Large Language Model Reasoning",
           "up to 70% higher accuracy, up to 39% fewer tokens, up to 187.5% higher E3"),
    _entry("reasoningv", "control", Need.TEXT, "2504.14560",
           "ReasoningV: Efficient Verilog Code Generation with Adaptive Hybrid Reasoning Model",
           "57.8% pass@1 on VerilogEval-human (+10.4 over open models), up to 75% fewer tokens"),
    _entry("thoughtmani", "control", Need.TEXT, "2504.13626",
           "Thought Manipulation: External Thought Can Be Efficient for Large Reasoning Models",
           "QwQ-32B on LiveBench/Code: about 30% fewer output tokens, performance kept"),
    _entry("tldr", "control", Need.LOGITS, "2505.07961",
           "Making Small Language Models Efficient Reasoners: Intervention, Supervision, Reinforcement",
           "about 50% fewer tokens on four math sets with minimal to no accuracy loss (TLDR); TS beats budget forcing"),

    # Collaborate: several streams or several models at once.
    _entry("astar-decoding", "collaborate", Need.SAMPLING, "2505.13672",
           "A*-Decoding: Token-Efficient Inference Scaling",
           "matches best-of-N and particle filtering with up to 3x fewer tokens and 30% fewer reward model passes"),
    _entry("foreal", "collaborate", Need.SAMPLING, "2506.06998",
           "What makes Reasoning Models Different? Follow the Reasoning Leader for Efficient Decoding",
           "30% to 50% fewer FLOPs and up to 40% shorter chains at 86% to 100% of the leader's accuracy"),
    _entry("group-think", "collaborate", Need.LOGITS | Need.KV, "2505.11107",
           "Group Think: Multiple Concurrent Reasoning Agents Collaborating at Token Level Granularity",
           "threads that read each other split the work: more found per step than by independent samples"),
    _entry("hawkeye", "collaborate", Need.TEXT, "2504.00424",
           "Hawkeye: Efficient Reasoning with Model Collaboration",
           "comparable quality with 35% of the chain of thought, up to 3.4x faster, 60% cheaper"),
    _entry("long-short", "collaborate", Need.TEXT, "2505.11827",
           "Not All Thoughts are Generated Equal: Efficient LLM Reasoning via Multi-Turn Reinforcement Learning",
           "Qwen2.5-7B level with DS-R1-Distill-Qwen-7B on five sets, with over 80% fewer tokens"),
    _entry("r2r", "collaborate", Need.LOGITS | Need.HIDDEN, "2505.21600",
           "R2R: Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing",
           "1.5B + 32B: 1.6x the accuracy of R1-7B at 5.6B active; 2.8x faster than R1-32B at comparable accuracy"),
    _entry("stand", "collaborate", Need.LOGITS | Need.KV, "2506.04708",
           "Accelerated Test-Time Scaling with Model-Free Speculative Sampling",
           "lossless: 60% to 65% less latency with several trajectories, 48% to 58% with one"),

    # Latent: think in embeddings.
    _entry("large-concept-model", "latent", Need.WEIGHTS, "2501.05487",
           "The Future of AI: Exploring the Potential of Large Concept Models",
           "zero-shot across languages, better than LLMs of its size on summaries (LCM paper)",
           folder=_LATENT_TRAINING),
    _entry("r-capsule", "latent", Need.HIDDEN | Need.EMBEDDINGS | Need.WEIGHTS, "2509.22131",
           "R-Capsule: Compressing High-Level Plans for Efficient Large Language Model Reasoning",
           "fewer visible reasoning tokens and lower latency at equal or better accuracy",
           folder=_LATENT_TRAINING),
    _entry("semcot", "latent", Need.HIDDEN | Need.EMBEDDINGS | Need.WEIGHTS, "2510.24940",
           "SemCoT: Accelerating Chain-of-Thought Reasoning through Semantically-Aligned Implicit Tokens",
           "best accuracy and speed against its baselines on five sets and two LLM families",
           folder=_LATENT_TRAINING),
    _entry("sim-cot", "latent", Need.HIDDEN | Need.EMBEDDINGS | Need.WEIGHTS, "2509.20317",
           "SIM-CoT: Supervised Implicit Chain-of-Thought",
           "GSM8k-Aug: Coconut on GPT-2 36.6% -> 44.8% at 12.2 tokens, CODI on LLaMA-3.1-8B 61.1% -> 64.1%",
           folder=_LATENT_TRAINING),
    _entry("soft-thinking", "latent", Need.LOGITS | Need.EMBEDDINGS, "2505.15778",
           "Soft Thinking: Unlocking the Reasoning Potential of LLMs in Continuous Concept Space",
           "up to +2.48 points pass@1 and up to 22.4% fewer tokens"),
    _entry("swireasoning", "latent", Need.LOGITS | Need.EMBEDDINGS, "2510.05069",
           "SwiReasoning: Switch-Thinking in Latent and Explicit for Pareto-Superior Reasoning LLMs",
           "+1.5 to +2.8 points on average; token efficiency +56% to +79% under a limited budget"),

    # Attention: look at less, keep less.
    _entry("delta", "attention", Need.KV, "2510.09883",
           "DELTA: Dynamic Layer-Aware Token Attention for Efficient Long-Context Reasoning",
           "attends to 4.25x fewer tokens and decodes 1.54x faster, AIME-2024 as with full attention"),
    _entry("kvshare", "attention", Need.KV, "2503.16525",
           "KVShare: An LLM Service System with Efficient and Effective Multi-Tenant KV Cache Reuse",
           "time to first token up to 9.39x lower, throughput 1.2x, accuracy +20.38% over earlier cache reuse"),
    _entry("lazyeviction", "attention", Need.KV, "2506.15969",
           "LazyEviction: Lagged KV Eviction with Attention Pattern Observation for Efficient Long Reasoning",
           "50% to 70% less KV cache; MATH-500 with half of it: 75.2% against 74.8% (DS-Llama-8B)"),

    # Agents: plan, call tools, talk.
    _entry("agp", "agents", Need.TEXT, "2506.02951",
           "Adaptive Graph Pruning for Multi-Agent Communication",
           "over 90% fewer tokens; 2.58 to 9.84 points above a single agent"),
    _entry("autoform", "agents", Need.TEXT, "2402.18439",
           "Beyond Natural Language: LLMs Leveraging Alternative Formats for Enhanced Reasoning and Communication",
           "up to 72.7% fewer tokens between agents; reasoning efficiency +3.3% to +5.7%"),
    _entry("codeadapt", "agents", Need.TEXT, "2510.20909",
           "Code-enabled language models can outperform reasoning models on diverse tasks",
           "3 of 4 LMs beat their reasoning counterparts, by up to 22.9%, with 10% to 81% fewer tokens"),
    _entry("codeagents", "agents", Need.TEXT, "2507.03254",
           "CodeAgents: A Token-Efficient Framework for Codified Multi-Agent Reasoning in LLMs",
           "planning +3 to +36 points with 55% to 87% fewer input and 41% to 70% fewer output tokens"),
    _entry("mpc-llm", "agents", Need.TEXT, "2504.11514",
           "Enhancing Autonomous Driving Systems with On-Board Deployed Large Language Models",
           "reasoning accuracy up to +10.45%, control adaptability up to +52.2%, up to 10.5x tokens/s on board"),
    _entry("rewoo", "agents", Need.TEXT, "2305.18323",
           "ReWOO: Decoupling Reasoning from Observations for Efficient Augmented Language Models",
           "HotpotQA: about 5x fewer tokens than ReAct and +4% accuracy"),

    # RL: objectives that train shorter reasoners.
    _entry("ares", "rl", Need.LOGITS | Need.WEIGHTS, "2510.08457",
           "ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping",
           "7B: multimodal average 55.9 (best open 7B: 46.2); MATH500 91.4% -> 95.2% with 2750 -> 2258 tokens"),
    _entry("brpo", "rl", Need.SAMPLING | Need.WEIGHTS, "2505.13438",
           "Optimizing Anytime Reasoning via Budget Relative Policy Optimization",
           "average of five sets at 1000 tokens about 34% (GRPO 29%), at 8000 about 52.5% (GRPO 50.7%)"),
    _entry("canon", "rl", Need.WEIGHTS, "2509.23962",
           "Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models",
           "Qwen2.5-Math-7B, math: 45.5% fewer tokens than DR.GRPO at equal accuracy (CANON-Eff)"),
    _entry("curriculum-grpo", "rl", Need.WEIGHTS, "2508.08940",
           "Train Long, Think Short: Curriculum Learning for Efficient Reasoning",
           "GSM8K: 86.20% with 88.8 tokens, against 82.71% with 87.0 for a fixed budget"),
    _entry("d3s", "rl", Need.LOGITS | Need.WEIGHTS, "2509.22115",
           "Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy Optimization",
           "Qwen2.5-Math-7B, average of 7 sets: GRPO 29.8% -> 34.3% pass@1, its level reached 2.04x faster"),
    _entry("dler", "rl", Need.WEIGHTS, "2510.15110",
           "DLER: Doing Length pEnalty Right - Incentivizing More Intelligence per Token via Reinforcement Learning",
           "R1-1.5B: average length 10499 -> 2466 (-77%), AIME24 29.79% -> 34.38%"),
    _entry("dr-saf", "rl", Need.WEIGHTS, "2508.11582",
           "Aware First, Think Less: Dynamic Boundary Self-Awareness Drives Extreme Reasoning Efficiency "
           "in Large Language Models",
           "49.27% fewer response tokens with minimal accuracy loss; 6.59x token efficiency"),
    _entry("drqa", "rl", Need.WEIGHTS, "2508.17803",
           "DRQA: Dynamic Reasoning Quota Allocation for Controlling Overthinking in Reasoning Large Language Models",
           "about 30% fewer tokens at equal or better accuracy"),
    _entry("fapo", "rl", Need.WEIGHTS, "2510.22543",
           "FAPO: Flawed-Aware Policy Optimization for Efficient and Reliable Reasoning",
           "Qwen2.5-32B: AIME24 38.9% -> 42.4%, AIME25 29.5% -> 33.5%, without longer responses"),
    _entry("hbpo", "rl", Need.SAMPLING | Need.WEIGHTS, "2507.15844",
           "Hierarchical Budget Policy Optimization for Adaptive Reasoning",
           "R1-Distill-1.5B, average: 60.6% fewer tokens (7921 -> 3120), accuracy 56.3% -> 59.4%"),
    _entry("kat-v1", "rl", Need.WEIGHTS, "2507.08297",
           "KAT-V1: Kwai-AutoThink Technical Report",
           "40B matches or beats DeepSeek-R1-0528 and Qwen3-235B-A22B with up to about 30% fewer tokens"),
    _entry("longcat-dora", "rl", Need.LOGPROBS | Need.WEIGHTS, "2509.18883",
           "LongCat-Flash-Thinking Technical Report",
           "AIME25 with tools: 19653 -> 6965 tokens (-64.5%), accuracy kept; over 3x rollout throughput"),
    _entry("miromind-campo", "rl", Need.WEIGHTS, "2507.14683",
           "MiroMind-M1: An Open-Source Advancement in Mathematical Reasoning "
           "via Context-Aware Multi-Stage Policy Optimization",
           "7B: AIME24 60.4% -> 73.4%; 32B: +8.7 points over Skywork-32B on AIME24 within 16k tokens"),
    _entry("mrt", "rl", Need.SAMPLING | Need.WEIGHTS, "2503.07572",
           "Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning",
           "about 1.5x the token efficiency of GRPO; DeepScaleR-1.5B, average: 54.5% -> 55.9% (GRPO 55.0%)"),
    _entry("pear", "rl", Need.LOGITS | Need.WEIGHTS, "2510.08026",
           "PEAR: Phase Entropy Aware Reward for Efficient Reasoning",
           "Qwen3-4B, average of six sets: 56.6% fewer tokens (7428 -> 3221), accuracy 74.85% -> 74.27%"),
    _entry("refine", "rl", Need.WEIGHTS, "2510.09062",
           "ReFIne: A Framework for Trustworthy Large Reasoning Models "
           "with Reliability, Faithfulness, and Interpretability",
           "interpretability +44.0%, faithfulness +18.8%, reliability +42.4% at competitive accuracy"),
    _entry("treepo", "rl", Need.SAMPLING | Need.WEIGHTS, "2508.17445",
           "TreePO: Bridging the Gap of Policy Optimization and Efficacy and Inference Efficiency "
           "with Heuristic Tree-based Modeling",
           "22% to 43% fewer GPU hours of sampling; overall maj@16 46.63% (GRPO) -> 58.21%"),
    _entry("vsrm", "rl", Need.SAMPLING | Need.WEIGHTS, "2508.10293",
           "Promoting Efficient Reasoning with Verifiable Stepwise Reward",
           "DS-Distill-1.5B: AIME24 12605 -> 7065 tokens (-44%), MATH-500 4960 -> 2400 (-52%)"),

    # Curation: traces in, training data out.
    _entry("asap", "curation", Need.TEXT | Need.LOGPROBS, "2508.05988",
           "Pruning the Unsurprising: Efficient Code Reasoning via First-Token Surprisal",
           "LiveCodeBench v4_v5 36.19% pass@1; 23.5% fewer tokens and 43.5% less latency than the best baseline"),
    _entry("astar-thought", "curation", Need.SAMPLING | Need.LOGPROBS, "2505.24550",
           "A*-Thought: Efficient Reasoning via Bidirectional Compression for Low-Resource Settings",
           "QwQ-32B: 12.3% -> 29.4% with 512 tokens; 33.6% fewer tokens at 70.6% -> 69.3% with 4096"),
    _entry("autol2s", "curation", Need.TEXT, "2505.22662",
           "AutoL2S: Auto Long-Short Reasoning for Efficient Large Language Models",
           "up to 57% shorter without loss"),
    _entry("ded", "curation", Need.TEXT, "2508.09883",
           "Beyond Scaling Law: A Data-Efficient Distillation Framework for Reasoning",
           "0.8k examples: AIME24 65.63% -> 81.87%, above the teacher QwQ-32B (76.25%)"),
    _entry("mind", "curation", Need.TEXT, "2505.19788",
           "Done Is Better than Perfect: Unlocking Efficient Reasoning by Structured Multi-Turn Decomposition",
           "up to about 70% fewer tokens and less time to the first answer at competitive accuracy"),
    _entry("pir", "curation", Need.TEXT | Need.LOGPROBS, "2505.19187",
           "LIMOPro: Reasoning Refinement for Efficient and Effective Test-time Scaling",
           "3% to 41% fewer tokens; S1-32B on AIME24: 37.9% -> 42.1% with 29% fewer"),
    _entry("rap", "curation", Need.TEXT | Need.KV, "2506.04755",
           "Truth in the Few: High-Value Data Selection for Efficient Multi-Modal Reasoning",
           "Qwen2.5-VL-7B: 56.04 from 9.3% of the samples in 52.8 hours, against 54.32 from all in 93.2"),

    # Vision: fewer and better visual tokens.
    _entry("adatoken3d", "vision", Need.HIDDEN | Need.KV, "2505.12782",
           "AdaToken-3D: Dynamic Spatial Gating for Efficient 3D Large Multimodal-Models Reasoning",
           "LLaVA-3D 7B: 63% fewer FLOPs and 21% faster, accuracy kept"),
    _entry("catp", "vision", Need.HIDDEN | Need.EMBEDDINGS | Need.KV, "2508.07871",
           "CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context Learning",
           "LLaVA-Next-7B, 4-shot, 77.8% of image tokens pruned: 100.1% of the score, 16.5% less latency"),
    _entry("crema", "vision", Need.EMBEDDINGS | Need.WEIGHTS, "2402.05889",
           "CREMA: Multimodal Compositional Video Reasoning via Efficient Modular Adaptation and Fusion",
           "better than or equal to OneLLM, BLIP-2 and SeViLA on 7 tasks with over 90% fewer trainable parameters"),
    _entry("f2c", "vision", Need.TEXT, "2510.02262",
           "From Frames to Clips: Efficient Key Clip Selection for Long-Form Video Understanding",
           "against uniform frames, equal tokens: Video-MME up to +8.1%, LongVideoBench +5.6%, MLVU +10.3%"),
    _entry("negtome", "vision", Need.EMBEDDINGS | Need.WEIGHTS, "2510.13232",
           "What 'Not' to Detect: Negation-Aware VLMs via Structured Reasoning and Token Merging",
           "G-DINO-B on OVDEval-Negation: NMS-AP 36.8 -> 47.6 (+10.8)"),
    _entry("storm", "vision", Need.EMBEDDINGS | Need.WEIGHTS, "2503.04130",
           "Token-Efficient Long Video Understanding for Multimodal LLMs",
           "7B with 12.5% of the tokens: latency 4.31 s -> 1.51 s, LongVideoBench 55.9 -> 60.5 (VILA)"),
    _entry("tokenpacker", "vision", Need.HIDDEN | Need.EMBEDDINGS | Need.WEIGHTS, "2407.02392",
           "TokenPacker: Efficient Visual Projector for Multimodal LLM",
           "576 -> 144 visual tokens: average 62.0 -> 62.8, 4.9 -> 24.9 tokens/s"),

    # Fusion: several models into one.
    _entry("infigfusion", "fusion", Need.LOGITS | Need.WEIGHTS, "2505.13893",
           "InfiGFusion: Graph-on-Logits Distillation via Efficient Gromov-Wasserstein for Model Fusion",
           "Phi-4, average of 18 reasoning tasks: 77.43 -> 84.16 (SFT alone 77.94)"),

    # Tasks: benchmarks and what a result must report.
    _entry("long-range-arena", "tasks", Need.WEIGHTS, "2011.04006",
           "Long Range Arena: A Benchmark for Efficient Transformers",
           "average of five tasks without Path-X: BigBird 55.01, Transformer 54.39; all fail at Path-X"),
    _entry("ollabench", "tasks", Need.TEXT, "2406.06863",
           "Ollabench: Evaluating LLMs' Reasoning for Human-centric Interdependent Cybersecurity",
           "gpt-4o: accuracy .473, 42.2 tokens wasted per question; llama2-7b: .409, 138.9"),
    _entry("survey-efficient-lrm", "tasks", Need.TEXT, "2503.23077",
           "Efficient Inference for Large Reasoning Models: A Survey",
           "a taxonomy of token-efficient reasoning, compared by accuracy and tokens on GSM8K"),
)
# fmt: on

CATALOGUE: dict[str, Entry] = {entry.slug: entry for entry in sorted(_ENTRIES, key=lambda entry: entry.slug)}
"""Every system by its slug, in the order of the slugs: the published ones and the baselines."""


class Row(TypedDict):
    """An entry as plain values, ready for JSON or a table; title and arxiv are empty where there is no paper."""

    slug: str
    title: str
    arxiv: str
    family: Family
    needs: list[str]
    claim: str
    status: Literal["available", "planned"]
    kind: Literal["published", "baseline"]


def status(entry: Entry) -> Literal["available", "planned"]:
    """Say whether a system's module is there, without importing it.

    Args:
        entry: of the catalogue.

    Returns:
        ``available`` if the module exists, ``planned`` if it doesn't.

    Raises:
        ModuleNotFoundError: a package above the module exists but imports something that is not installed.
    """
    try:
        spec = find_spec(entry.module)
    except ModuleNotFoundError as error:
        # Only a missing package of our own means planned: anything else is a fault that must not look like a plan.
        if error.name and f"{entry.module}.".startswith(f"{error.name}."):
            return "planned"
        raise
    # A folder without code is found as a namespace package, which has no origin.
    return "available" if spec is not None and spec.origin is not None else "planned"


def listing(family: Family | None = None) -> list[Row]:
    """List the systems as plain rows.

    Args:
        family: list only this family, None for all.

    Returns:
        A row for each system, ordered by family and slug.

    Raises:
        UnknownName: there is no such family.
    """
    if family is not None and family not in _FOLDERS:
        raise UnknownName("family", family, _FOLDERS)
    chosen = [entry for entry in CATALOGUE.values() if family in (None, entry.family)]
    return [
        {
            "slug": entry.slug,
            "title": entry.paper.title if entry.paper else "",
            "arxiv": entry.paper.arxiv if entry.paper else "",
            "family": entry.family,
            "needs": entry.needs.names,
            "claim": entry.claim,
            "status": status(entry),
            "kind": entry.kind,
        }
        for entry in sorted(chosen, key=lambda entry: (entry.family, entry.slug))
    ]
