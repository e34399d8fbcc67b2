"""Counting a letter in a text: every word is spelled out, with a count after each letter that is meant."""

from __future__ import annotations

import re
import string
from typing import Any

from arithmetic import Scratch
from lesson import Lesson, Route


def _spell(s: Scratch, word: str, target: str, count: int) -> int:
    """Spell a word, writing the count after every target letter, and return the count after it."""
    letters, place = word.lower(), 0
    while place < len(letters):
        letter = letters[place]
        following = letters[place + 1 : place + 2]
        right = f" {letter}=" if letter == target else f" {letter}"
        other = s.rng.choice([x for x in string.ascii_lowercase if x not in (letter, target)])
        # not counted, or counted without being the letter; misread; the letter before again; a letter left out
        options = [f" {letter}" if letter == target else f" {letter}=", f" {other}"]
        if place and letters[place - 1] not in (letter, target):
            options.append(f" {letters[place - 1]}")
        if following and following not in (letter, target):
            options.append(f" {following}")
        written = s.choose(right, [option for option in options if option != right])
        if written.endswith("="):
            count = s.result(count + 1)
        if written == right or written.strip(" =") == letter or written == f" {other}":
            place += 1
        elif written == f" {following}":
            place += 2
    s.write("\n")
    return count


def _name_words(s: Scratch, words: list[str], place: int) -> tuple[str, int]:
    """Write the word that comes next and return it with the place after it; a slip skips or repeats a word."""
    word = words[place]
    near = [i for i in (place + 1, place - 1) if 0 <= i < len(words) and words[i] != word]
    s.write("- ")  # a blank before it, as in the question, makes it the same token
    written = s.choose(word, [words[i] for i in near])
    if written != word:
        place = next(i for i in near if words[i] == written)
    return written, place + 1


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one text."""
    span: list[str] = item["metadata"]["span"]
    target: str = item["metadata"]["target_letter"]

    def running(s: Scratch, words: list[str] = span) -> int:
        count = place = 0
        while place < len(words):
            word, place = _name_words(s, words, place)
            s.write(":")
            count = _spell(s, word, target, count)
        return count

    def from_the_end(s: Scratch) -> int:
        return running(s, span[::-1])

    def word_by_word(s: Scratch) -> int:
        counts, place = [], 0
        while place < len(span):
            word, place = _name_words(s, span, place)
            s.write(":")
            count = _spell(s, word, target, 0)
            if count:
                counts.append(count)
        total = counts[0] if counts else 0
        for more in counts[1:]:
            s.write(f"{total}+{more}=")
            total = s.result(total + more)
            s.write("\n")
        return total

    def only_words_with_it(s: Scratch, claimed: str) -> bool:
        if not re.fullmatch(r"[0-9]{1,4}", claimed.strip()):
            return False
        words = [word for word in span if target in word.lower()]
        total = place = 0
        while place < len(words):
            word, place = _name_words(s, words, place)
            s.write(" ")
            count = s.result(word.lower().count(target))
            s.write(f", {total}+{count}=")
            total = s.result(total + count)
            s.write("\n")
        stands = total == int(claimed)
        s.write(f"{total}{'=' if stands else '!='}{int(claimed)}\n")
        return stands

    routes: list[tuple[str, Route]] = [
        ("spelling every word", running),
        ("adding up the counts of the words", word_by_word),
    ]
    if len(span) > 1:
        routes.insert(1, ("going from the last word", from_the_end))
    text = " ".join(span)
    return Lesson(
        question=item["question"].strip(),
        answer=item["answer"],
        routes=routes,
        plan=["Spell every word, letter by letter.", f'Count each "{target}", capital or not.', "Read off the count."],
        code=f'text = "{text}"\nprint(text.lower().count("{target}"))',
        checks=[(f'the words with "{target}"', only_words_with_it)],
    )
