"""The rows that are decoded together, one token a step."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from thrifty.decoding.controller import Controller, Drafter, overrides
from thrifty.decoding.draft import Draft, Walk, choose_drafted
from thrifty.decoding.limits import limit
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import Sampler
from thrifty.decoding.session import Session
from thrifty.decoding.stride import stride
from thrifty.models.attention import AttentionPolicy
from thrifty.models.torch import TorchModel

HOOKS = ("begin", "adjust_logits", "next_input", "after_token", "see_hidden")


class DecodeBatch:
    """The rows that are decoded together.

    Args:
        model: which decodes.
        policy: decides what the rows attend to and keep, None for everything.

    Attributes:
        model: which decodes.
        session: their caches and logits, in the order of `rows`.
        rows: those at work.
    """

    def __init__(self, model: TorchModel, policy: AttentionPolicy | None = None) -> None:
        self.model = model
        self.session = Session(model, policy)
        self.rows: list[Row] = []
        self._steered: dict[str, list[tuple[Controller, list[int] | None]]] = {}
        self._steered_places: set[int] = set()
        self._sampler: Sampler | None = None
        self._keys = np.zeros(0, dtype=np.uint64)
        self._pending: list[int | None] = []  # chosen, but not yet read by the model
        self._fed: dict[int, Tensor] = {}
        self._controllers: dict[int, Sequence[Controller]] = {}
        self._drafters: dict[int, Drafter] = {}

    @torch.inference_mode()
    def fork(self, rows: Sequence[Row], room: int) -> Session:
        """Return a session of copies of some rows; see `thrifty.decoding.controller.Batch`."""
        places = {id(row): i for i, row in enumerate(self.rows)}
        index = [places[id(row)] for row in rows]
        copy = self.session.fork(index, room + 1)
        waiting = [self._pending[i] for i in index]
        if any(id(row) in self._fed for row in rows):
            copy.append_embeddings(self._vectors(rows, waiting))
        elif None not in waiting:
            copy.append(torch.tensor(waiting, device=self.model.device))
        else:
            copy.append([[] if token is None else [token] for token in waiting])
        return copy

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Return what newest tokens were chosen from; see `thrifty.decoding.controller.Batch`."""
        places = {id(row): i for i, row in enumerate(self.rows)}
        return self.session.logits[[places[id(row)] for row in rows]]

    def feed(self, row: Row, vector: Tensor) -> None:
        """Give the model a vector instead of a row's newest token; see `thrifty.decoding.controller.Batch`."""
        self._fed[id(row)] = vector.to(self.model.dtype)
        row.mark_latent()

    def _vectors(self, rows: Sequence[Row], tokens: Sequence[int | None]) -> Tensor:
        """Return what stands for the newest tokens of some rows, all unread ``(rows, hidden)``."""
        vectors = self.model.embed(torch.tensor(tokens, device=self.model.device))
        return torch.stack([self._fed.get(id(row), vector) for row, vector in zip(rows, vectors, strict=True)])

    @torch.inference_mode()
    def rewrite(
        self, row: Row, start: int, pieces: Sequence[tuple[str | Sequence[int], bool]], aside: bool = False
    ) -> None:
        """Replace a row's response from a token on; see `thrifty.decoding.controller.Batch`."""
        place = next(i for i, other in enumerate(self.rows) if other is row)
        held, stored = self.session.held.rows[place], self.session.positions[place]
        # where entries were evicted since then, all that stays is read again
        stands = held.reaches(min(stored, len(row.prompt_ids) + start - 1))
        row.rewrite(start, pieces, aside, read=stored - len(row.prompt_ids) if stands else 0)
        whole = [*row.prompt_ids, *row.ids]
        # in a step, the newest token is read at its end; before the first one, reading it is what gives logits
        unread = self._pending[place] is not None
        self._fed.pop(id(row), None)
        end = len(whole) - 1 if unread else len(whole)
        known = min(stored, len(row.prompt_ids) + start, end if unread else end - 1)
        fresh = self.session.fork([place], room=end - known) if stands else Session(self.model, self.session.policy)
        with self._tapping(self._controllers[id(row)], fresh):
            if not stands:
                fresh.add([whole[:end]])
                fresh.held.rows = [held.anew()]
                row.usage.reread += known
            else:
                fresh.rewind(0, stored - known)
                fresh.append([whole[known:end]])
        row.usage.forward_passes += known < end or not stands
        self.session.put(place, fresh)
        if unread:
            self._pending[place] = whole[-1]

    @torch.inference_mode()
    def admit(
        self,
        rows: Sequence[Row],
        controllers: Sequence[Sequence[Controller]],
        drafters: Sequence[Drafter | None] = (),
    ) -> None:
        """Read the prompts of new rows and let their controllers see them.

        Args:
            rows: which.
            controllers: that steer each of them.
            drafters: that guess for each of them; nothing for none.
        """
        with self._tapping(c for its_controllers in controllers for c in its_controllers):
            fresh = [row for row in rows if row.kept is None]
            if fresh:
                self.session.add([[*row.prompt_ids, *row.ids] for row in fresh])
        heirs = [row for row in rows if row.kept is not None]
        for row in heirs:
            assert row.kept is not None
            self.session.adopt(row.kept)
            row.kept = None
        self.rows.extend([*fresh, *heirs])
        self._pending.extend([None] * len(rows))
        self._drafters |= {id(row): d for row, d in zip(rows, drafters, strict=False) if d is not None}
        for row, its_controllers in zip(rows, controllers, strict=True):
            self._controllers[id(row)] = its_controllers
            row.usage.forward_passes += not row.continues
            if row.inherited:  # whoever stopped its parent did so before the limits were looked at
                limit(row)
            if row.settings.thinking_budget is not None:
                row.events["budget"] = row.settings.thinking_budget
                if row.settings.thinking_budget == 0 and row.thinking:
                    row.close_thinking("budget")
        self._recompose()
        entered = set(map(id, rows))
        for controller, places in self._steered["begin"]:
            mine = self.rows if places is None else [self.rows[i] for i in places]
            controller.begin([r for r in mine if id(r) in entered], self)
        self._show_hidden(entered)

    def _tapping(
        self, controllers: Iterable[Controller], session: Session | None = None
    ) -> AbstractContextManager[None]:
        layers = sorted({layer for controller in controllers for layer in controller.taps})
        return (session or self.session).tap(layers) if layers else nullcontext()

    def _show_hidden(self, only: Container[int] | None = None) -> None:
        for controller, places in self._steered["see_hidden"]:
            index = [
                i
                for i in (range(len(self.rows)) if places is None else places)
                if only is None or id(self.rows[i]) in only
            ]
            if index:
                hidden = {layer: self.session.hidden[layer][index] for layer in controller.taps}
                controller.see_hidden([self.rows[i] for i in index], hidden)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write a token to every row, and those that its draft foresaw; return the rows that finished, gone now."""
        if any(row.stopped for row in self.rows):  # before their first token
            return self._remove([i for i, row in enumerate(self.rows) if row.stopped])
        walking, others = self._stride() if self._drafters else ([], None)
        if others is None or others:
            self._write(others)
            walking += self._follow(range(len(self.rows)) if others is None else others) if self._drafters else []
        while walking:
            self._write(walking)
            walking = self._follow(walking)
        gone = self._remove([i for i, row in enumerate(self.rows) if row.stopped and not row.keep])
        if self.rows:
            self._read()
        if self._steered["see_hidden"]:
            self._show_hidden()
        # a row that is gone on from takes part in the pass over its newest token, whose states it keeps too
        return gone + self._remove([i for i, row in enumerate(self.rows) if row.stopped])

    def _write(self, places: Sequence[int] | None) -> None:
        """Choose and record a token for some rows, None for all, and let their controllers see it."""
        rows = self.rows if places is None else [self.rows[i] for i in places]
        tokens = self._choose(rows, places)
        for k, row in enumerate(rows):
            forced = row.forced.popleft() if row.forced else None
            token = tokens[k] if forced is None else forced
            row.record(token, forced is not None)
            self._pending[k if places is None else places[k]] = token
        for controller, mine in self._steering("after_token", places):
            controller.after_token(rows if mine is None else [rows[k] for k in mine], self)
        for row in rows:
            limit(row)

    def _stride(self) -> tuple[list[int], list[int] | None]:
        """Let rows that nobody steers write what their drafts foresaw, all at once.

        Returns:
            Rows that were moved on and are to write what is forced; rows that have not written anything, None for all.
        """
        walks, mine = dict[int, Walk](), list[int]()
        for place, walk in enumerate(self.session.walks if self.session.policy is None else ()):
            row = self.rows[place]
            drawn = walk is not None and walk.draft.chances and row.settings.temperature > 0
            if walk and not (drawn or row.forced or place in self._steered_places or id(row) in self._fed):
                walks[place] = walk
                mine.append(place)
        if not mine:
            return [], None
        rows = [self.rows[place] for place in mine]
        strides = stride(rows, list(walks.values()), self._keys[mine], self._record)
        self.session.follow(mine, strides.paths)
        for place, row, path, end in zip(mine, rows, strides.paths, strides.ends, strict=True):
            self._went(row, walks[place], len(path))
            self._pending[place] = end
            if end is not None:
                self._leave(place, walks[place])
        self._show_drafters([rows[i] for i in strides.owners], strides.written, strides.probabilities)
        waiting = [place for place, end in zip(mine, strides.ends, strict=True) if end is None]
        return waiting, [place for place in range(len(self.rows)) if place not in walks]

    def _record(self, row: Row, token: int) -> None:
        row.record(token, forced=False)
        limit(row)

    def _went(self, row: Row, walk: Walk, steps: int) -> None:
        """Take drafted tokens that came true out of the account: they are in that of what was written."""
        row.usage.drafted -= steps
        row.usage.flops -= steps * self.model.flops(1, walk.base)

    def _leave(self, place: int, walk: Walk) -> None:
        self.session.walks[place] = None
        row = self.rows[place]
        self._drafters[id(row)].accepted(row, len(walk.draft), walk.steps)

    def _follow(self, places: Iterable[int]) -> list[int]:
        """Move rows along their drafts where these hold the newest tokens; return which can choose the next ones."""
        drafted = [(i, walk) for i in places if (walk := self.session.walks[i])]
        live = [i for i, _ in drafted if not self.rows[i].stopped and id(self.rows[i]) not in self._fed]
        tokens = [[token] for i in live if (token := self._pending[i]) is not None]
        went = {i for i, steps in zip(live, self.session.follow(live, tokens), strict=True) if steps}
        for i, walk in drafted:
            if i not in went:
                self._leave(i, walk)
                continue
            self._pending[i] = None
            self._went(self.rows[i], walk, 1)
        if went and self._steered["see_hidden"]:
            self._show_hidden({id(self.rows[i]) for i in went})
        return sorted(went)

    def _read(self) -> None:
        """Let the model read every row's newest token, with the drafts behind it."""
        rows, tokens = self.rows, self._pending
        with self._tapping(c for row in rows for c in self._controllers[id(row)]):
            if self._fed:
                self.session.append_embeddings(self._vectors(rows, tokens))
            elif self._drafters:
                drafts = self._drafts()
                for row, draft, length in zip(rows, drafts, self.session.lengths, strict=True):
                    row.usage.drafted += len(draft)
                    row.usage.flops += len(draft) * self.model.flops(1, length)
                self.session.append_drafted(torch.tensor(tokens), drafts)
            else:
                self.session.append(torch.tensor(tokens, device=self.model.device))
        for row in rows:
            row.usage.forward_passes += 1
        self._pending = [None] * len(rows)
        self._fed.clear()

    def _drafts(self) -> list[Draft]:
        """Return what may follow the newest tokens: what is forced anyway, or what the rows' drafters guess."""
        drafts = [Draft.chain(list(row.forced)) for row in self.rows]
        asked: dict[Drafter, list[int]] = {}
        for i, row in enumerate(self.rows):
            drafter = self._drafters.get(id(row))
            if drafter is None or row.stopped:
                drafts[i] = Draft.chain([])
            elif not row.forced:
                asked.setdefault(drafter, []).append(i)
        for drafter, places in asked.items():
            proposed = drafter.propose([self.rows[i] for i in places])
            for i, draft in zip(places, proposed, strict=True):
                drafts[i] = draft
        rooms = [
            min(row.settings.max_tokens, self.model.context_length - 1 - len(row.prompt_ids)) - len(row.ids)
            for row in self.rows
        ]
        # nothing is evicted under a draft
        deepest = [min(room, max(draft.depths, default=0)) for draft, room in zip(drafts, rooms, strict=True)]
        stored = self.session.lengths
        rooms = [self.session.held.room(i, stored[i], deepest[i]) for i in range(len(stored))]
        return [draft.clipped(room) for draft, room in zip(drafts, rooms, strict=True)]

    def _remove(self, places: Sequence[int]) -> list[Row]:
        rows = self.rows
        gone = [rows[i] for i in places]
        for row, place in zip(gone, places, strict=True):
            if row.keep:
                row.kept = self.fork([row], 0)
            row.settle()
            row.events.update(self.session.held.account(place, self.session.lengths[place]))
            del self._controllers[id(row)]
            self._drafters.pop(id(row), None)
            self._fed.pop(id(row), None)
        if gone:
            order = self.session.drop(places)
            self.rows = [rows[i] for i in order]
            self._pending = [self._pending[i] for i in order]
            self._recompose()
        return gone

    def _steering(self, hook: str, places: Sequence[int] | None) -> Iterator[tuple[Controller, list[int] | None]]:
        """Yield the controllers that have a hook, with the indices of their rows among some rows, None for all."""
        for controller, steered in self._steered[hook]:
            if places is None:
                yield controller, steered
                continue
            mine = [k for k, place in enumerate(places) if steered is None or place in steered]
            if mine:
                yield controller, None if len(mine) == len(places) else mine

    def _choose(self, rows: Sequence[Row], places: Sequence[int] | None) -> list[int]:
        logits = self.session.logits if places is None else self.session.logits[list(places)]
        for controller, mine in self._steering("adjust_logits", places):
            if mine is None:
                logits = controller.adjust_logits(rows, logits)
            else:
                adjusted = controller.adjust_logits([rows[k] for k in mine], logits[mine])
                logits = logits.clone()
                logits[mine] = adjusted
        sampler, keys = self._sampler, self._keys
        assert sampler is not None
        if places is not None:
            sampler, keys = Sampler.of([row.settings for row in rows], self.model.device), keys[list(places)]
        probabilities = sampler.probabilities(logits) if self._drafters else None
        if sampler.greedy:
            tokens: list[int] = logits.argmax(-1).tolist()
        else:
            counters = np.array([len(row.ids) for row in rows], dtype=np.uint64)
            tokens = sampler.choose(logits, keys, counters, probabilities).tolist()
        if probabilities is not None:
            self._observe(rows, places, probabilities, tokens)
        for controller, mine in self._steering("next_input", places):
            if mine is None:
                controller.next_input(rows, tokens)
            else:
                some = [tokens[k] for k in mine]
                controller.next_input([rows[k] for k in mine], some)
                for k, token in zip(mine, some, strict=True):
                    tokens[k] = token
        return tokens

    def _observe(
        self, rows: Sequence[Row], places: Sequence[int] | None, probabilities: Tensor, tokens: list[int]
    ) -> None:
        """Show drafters what rows choose from, and choose again where a draft was drawn at random."""
        for k, row in enumerate(rows):
            walk = self.session.walks[k if places is None else places[k]]
            chances = walk.draft.chances.get(walk.node) if walk and row.settings.temperature > 0 else None
            if walk and chances and not row.forced:
                drafted = list(walk.draft.children.get(walk.node, {}))
                tokens[k] = choose_drafted(probabilities[k], drafted, chances, row.key, len(row.ids))
        free = [k for k, row in enumerate(rows) if id(row) in self._drafters and not row.forced]
        self._show_drafters([rows[k] for k in free], [len(rows[k].ids) for k in free], probabilities[free])

    def _show_drafters(self, rows: Sequence[Row], written: Sequence[int], probabilities: Tensor) -> None:
        seen: dict[Drafter, list[int]] = {}
        for k, row in enumerate(rows):
            seen.setdefault(self._drafters[id(row)], []).append(k)
        for drafter, mine in seen.items():
            drafter.observe([rows[k] for k in mine], [written[k] for k in mine], probabilities[mine])

    def _recompose(self) -> None:
        """Note which controllers steer which rows; None stands for all of them."""
        everyone: dict[Controller, list[int]] = {}
        for i, row in enumerate(self.rows):
            for controller in self._controllers[id(row)]:
                everyone.setdefault(controller, []).append(i)
        self._steered = {
            hook: [
                (c, None if len(places) == len(self.rows) else places)
                for c, places in everyone.items()
                if overrides(c, hook)
            ]
            for hook in HOOKS
        }
        steered = [p for hook in HOOKS[1:] for _, p in self._steered[hook]]
        self._steered_places = {p for its in steered for p in (range(len(self.rows)) if its is None else its)}
        self._sampler = Sampler.of([row.settings for row in self.rows], self.model.device)
        self._keys = np.array([row.key for row in self.rows], dtype=np.uint64)
