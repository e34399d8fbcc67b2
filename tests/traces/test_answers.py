"""Finding answers in text, made up and real."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.traces.answers import CANDIDATE_PATTERNS, boxed, extract_answer, extract_candidates
from thrifty.traces.checker import MAX_ANSWER
from thrifty.traces.equality import same_plainly

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
KINDS = ("auto", "number", "choice", "text", "math")
FRAGMENTS = (
    *("\\boxed{", "\\boxed", "\\fbox ", "{", "}", "\\", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\frac{1}", "\\text{"),
    *("answer is ", "Answer:", "**", "#### ", "\n", "\n\n", " ", ".", ",", "1", "12", "1,234", "-", "/", "%", "=", "x"),
    *("So ", " is right", "gives ", "not ", "again", "same result, ", "matches ", "both ways give ", "(A)", "B.", "²"),
)
hostile = st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join))
balanced = st.recursive(
    st.text("ab1 +^_.,\n", max_size=4) | st.sampled_from(("\\{", "\\}", "\\\\", "\\frac", "\\%")),
    lambda inner: (
        st.lists(inner, max_size=3).map("".join)
        | inner.map(lambda s: f"{{{s}}}")
        | inner.map(lambda s: f"\\boxed{{{s}}}")
    ),
    max_leaves=12,
)


class TestBoxed:
    @pytest.mark.parametrize(
        ("text", "contents"),
        [
            (r"so \boxed{12}.", ["12"]),
            (r"\boxed{\frac{1}{2}} and \fbox{3}", [r"\frac{1}{2}", "3"]),
            (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
            (r"\boxed {5}", ["5"]),
            (r"$\boxed 5$", ["5"]),
            (r"\boxed 12.", ["12"]),
            (r"\boxed \frac{1}{2}.", [r"\frac{1}{2}"]),
            (r"put it in \boxed and go on", []),
            (r"\\boxed{7}", ["7"]),
            (r"\boxed{\boxed{3}}", [r"\boxed{3}"]),
            (r"\boxed{1 and \boxed{2}", ["2"]),
            (r"\boxed{1} \boxed{2", ["1"]),
            (r"\boxedtext{1}", []),
            ("", []),
        ],
    )
    def test_contents(self, text, contents):
        assert boxed(text) == contents

    @given(balanced)
    def test_gives_back_balanced_contents(self, content):
        assert boxed(f"\\boxed{{{content}}}") == [content]

    @given(hostile)
    def test_never_raises(self, text):
        assert all(isinstance(content, str) for content in boxed(text))


class TestExtractAnswer:
    @pytest.mark.parametrize(
        ("text", "kind", "answer"),
        [
            (r"first \boxed{1}, then \boxed{2}", "auto", "2"),
            (r"The answer is 3. \boxed{}", "auto", "3"),
            (r"\boxed{\boxed{3}}", "auto", "3"),
            ("She makes 9 * 2 = 18.\n#### 18", "auto", "18"),
            ("#### Step 3\nso it is 7", "auto", "7"),
            ("#### 12\nThat is all.", "auto", "12"),
            ("So the answer is 12.", "auto", "12"),
            ("the final answer is 3,000 dollars.", "auto", "3,000"),
            ("The answer is 12 because 5 + 7 = 12. It has 2 digits.", "auto", "12"),
            ("The answer is 2*6 = 12.", "auto", "12"),
            ("**Answer:** 50%", "auto", "50%"),
            ("### Answer\n\n12 apples", "auto", "12"),
            ("**Final Answer:**\n\\[\n x + 1 \n\\]", "math", "x + 1"),
            (r"The answer is $\frac{1}{2}$.", "math", r"\frac{1}{2}"),
            ("**Answer:** Sandra needs to babysit **5 times**.", "auto", "5"),
            ("**Answer:** Sandra needs to babysit 5 times.", "number", "5"),
            ("Answer: There are 50 books. Half are in English.\nSo **20** are Spanish.", "number", "20"),
            ("The answer is 12. No, the answer is not 12. The answer is -5.", "auto", "-5"),
            ("The answer is not 12.", "text", None),
            ("So the answer is 1 1/2.", "number", "1 1/2"),
            ("The answer is Paris.", "text", "Paris"),
            ("So the answer is **yes**.", "text", "yes"),
            ("We get -3.5.", "number", "-3.5"),
            ("It costs $5.00.", "number", "5.00"),
            ("1 - 2 = 3", "number", "3"),
            ("We get 12 here", "math", None),
            ("We get 12 here", "text", None),
            ("Nothing at all", "auto", None),
            ("", "auto", None),
        ],
    )
    def test_answers(self, text, kind, answer):
        assert extract_answer(text, kind) == answer

    @pytest.mark.parametrize(
        ("text", "letter"),
        [
            ("(B)", "B"),
            ("B)", "B"),
            (r"\boxed{\text{(C)}}", "C"),
            (r"\boxed{D. forty}", "D"),
            ("Final answer: **B**", "B"),
            ("The correct option is (C) because it fits.", "C"),
            ("I think option B is best", "B"),
            (r"so \text{B}", "B"),
            ("A. dog\nB. cat\nThe best one is B. cat", "B"),
            ("The answer is A.", "A"),
            ("The answer is A because it fits.", "A"),
            ("The answer is A lot of dogs", None),
            ("A dog is there", None),
            ("The answer is a dog", None),
            ("252\nD is the answer", "D"),
            ("It is C", "C"),
            ("I", None),
        ],
    )
    def test_option_letters(self, text, letter):
        assert extract_answer(text, "choice") == letter

    @given(hostile, st.sampled_from(KINDS))
    def test_never_raises(self, text, kind):
        answer = extract_answer(text, kind)
        assert answer is None or answer

    @pytest.mark.parametrize("unit", [*FRAGMENTS, "answer is \\[ ", "answer is 1+", "\\boxed \\frac{", "1,111", "A "])
    def test_long_hostile_texts_come_to_an_end(self, unit):
        text = (unit * 100_000)[:100_000]
        for kind in KINDS:
            extract_answer(text, kind)
        extract_candidates(text)
        same_plainly(text[:MAX_ANSWER], text[1:MAX_ANSWER])


class TestExtractCandidates:
    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("So the answer is 12.", "12"),
            ("The answer is 12", "12"),
            (r"57 + 87 = \boxed{144}", "144"),
            ("So 12 is right", "12"),
            ("But let me think again. No, 12 is fine.", "12"),
            ("That gives 12 again.", "12"),
            ("Same result, 12.", "12"),
            ("It matches, 12.", "12"),
            ("final answer: 12", "12"),
            ("So the answer is 12 again.", "12"),
            ("Hmm, both ways give -12. I am confident.", "-12"),
            ("Wait, did I read the question right? Yes. The answer is 1,200.", "1,200"),
            ("But this gives 137, not 147. Let me work it out once more.", "137"),
            ("So 12 is right. The answer is 13.", "13"),
            ("So the answer should be $12.50, I think.", "12.50"),
            ("So the answer is (B).", "B"),
            (r"The answer is \(x^2\).", "x^2"),
            ("57+87: 7+7=14, 5+8+1=14 -> 144", None),
            ("144+70: 0+4=4, 7+4=11, 1+1=2", None),
            ("98 + 77: 8+7=15, 9+7+1=17. So 175.", None),
            ("2*3=6 is right", None),
            ("That gives 12 apples.", None),
            ("So the answer is ['-3.0', '5.0'].", "['-3.0', '5.0']"),
            ("So the answer is Zoey is a knave, and Leo is a knight again.", "Zoey is a knave, and Leo is a knight"),
            ("So the answer is what we have to find.", None),
            ("So the answer must be Sam is 6 years old now.", None),
            ("The answer is not 12.", None),
            ("The answer isn't 12.", None),
            ("If the answer is 5, then x is 3.", None),
            ("Wait, let me check by going from the end.", None),
            (r"**Final Answer:** \boxed{12", None),
            ("", None),
        ],
    )
    def test_values(self, line, value):
        assert extract_candidates(line) == value

    def test_a_long_line_is_read_from_its_end(self):
        assert extract_candidates("The answer is 1. " + "x" * 10_000 + " The answer is 2.") == "2"

    @given(hostile)
    def test_never_raises(self, line):
        value = extract_candidates(line)
        assert value is None or value

    def test_patterns_have_names(self):
        assert all(isinstance(pattern, re.Pattern) for pattern in CANDIDATE_PATTERNS.values())


def _records(name: str) -> list[dict]:
    path = DATA / name / "dev.jsonl"
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestRealTraces:
    # The shares that the data's own notes give for 'last boxed number, else last number'.
    @pytest.mark.parametrize(
        ("model", "closer", "share"),
        [
            ("DeepSeek-R1", "</think>", 0.95),
            ("QwQ-32B", "</think>", 0.97),
            ("DeepSeek-R1-Distill-Qwen-32B", "</think>", 0.93),
            ("s1.1-32B", "\nanswer", 0.965),
            ("Qwen2.5-32B-Instruct", "</think>", 0.89),
        ],
    )
    @pytest.mark.parametrize("kind", ["number", "auto"])
    def test_answers_of_reasoners(self, model, closer, share, kind):
        records = [
            r
            for r in _records("traces_mip")
            if (r["model"], r["dataset"], r["condition"]) == (model, "gsm8k", "well-posed")
        ]
        found = [extract_answer(r["trace"].rpartition(closer)[2], kind) for r in records]
        right = [
            a is not None and same_plainly(a, r["answer"], kind) is True for a, r in zip(found, records, strict=True)
        ]
        assert len(records) == 295
        assert sum(right) / len(right) >= share

    def test_candidates_are_mostly_the_answer_that_the_model_gives(self):
        records = [
            r
            for r in _records("traces_mip")
            if (r["model"], r["dataset"], r["condition"]) == ("DeepSeek-R1", "gsm8k", "well-posed")
        ]
        agree, seen, total = 0, 0, 0
        for record in records:
            thinking, closer, answer = record["trace"].rpartition("</think>")
            final = extract_answer(answer, "number")
            if not closer or final is None:
                continue
            values = [value for line in thinking.split("\n") if (value := extract_candidates(line)) is not None]
            seen += bool(values)
            total += len(values)
            agree += sum(same_plainly(value, final, "number") is True for value in values)
        assert seen >= 0.9 * len(records)
        assert agree >= 0.9 * total

    def test_reference_solutions_state_the_reference(self):
        for record in _records("math500"):
            answer = extract_answer(record["trace"], "math")
            assert answer is not None
            assert same_plainly(answer, record["answer"], "math") is True

    def test_graded_samples(self):
        for record in _records("traces_math_groups"):
            for sample in record["samples"]:
                answer = extract_answer(sample["text"], "math")
                assert (answer is not None and same_plainly(answer, record["answer"], "math")) is sample["correct"]
