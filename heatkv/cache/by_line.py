"""How lines are cached as computed: token by token, in place; what a schedule lets go of goes when a line begins.

The heads of a layer are cut into groups, each with memory of its own and one call of the kernel a token:

- where the heads of a group hold equally many tokens, memory is ``[2, B, heads, tokens, D]``;
- where they do not, it is ``[2, B, entries, D]``: nothing is padded, see `attention.shared_attention`.

Room is taken for a *stretch*: the lines up to the next one at whose beginning anything goes. A token is written into
the room of its line, so that nothing is copied for a token. When a stretch begins, each layer moves what it keeps into
new memory, layers that shrink first; beside the cache that takes the room of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.cache.attention import attention, entry_kinds, hiding, on_host, select, shared_attention
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule

# What costs as much as a product of a query and a key of its own head: all that a group does for a token so many, and a
# product within a group of heads that differ so much.
GROUP_PRODUCTS = 3072
SHARED_PRODUCT = 0.25


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """What a group of heads holds during a stretch that begins with line ``first``.

    Parameters
    ----------
    held_H
        Tokens of earlier segments that each head holds.
    room
        Tokens of the stretch, all heads alike.
    head_E, position_E
        Whose every entry of memory is, and which token of the sequence: what is held by head and position, then the
        room; where all heads hold equally many, the room of each head behind what it holds.
    kind_E
        What hides each (`attention.hiding`).
    keep_E
        Which entries of the stretch before, or of the condition, are held.

    All of these are on the host: those of all stretches and layers together take as much as what they number.
    """

    first: int
    held_H: npt.NDArray[np.int64]
    room: int
    head_E: npt.NDArray[np.integer]
    position_E: npt.NDArray[np.integer]
    kind_E: Tensor
    keep_E: Tensor

    @cached_property
    def aligned(self) -> bool:
        return bool((self.held_H == self.held_H[0]).all())

    @property
    def entries(self) -> int:
        return len(self.head_E)


def plan_group(
    drop_at_HS: npt.NDArray[np.integer], scales: ScaleSchedule, first: int, last: int, before: GroupPlan | None,
    device: torch.device,
) -> GroupPlan:  # fmt: skip
    """Lay out the entries for the lines ``first .. last``; ``before`` is None where only the condition came before."""
    heads, condition = len(drop_at_HS), scales.tokens[0]
    head_E = np.repeat(np.arange(heads), condition) if before is None else before.head_E
    position_E = np.tile(np.arange(condition), heads) if before is None else before.position_E
    segment_E = np.searchsorted([end for _, end in scales.bounds], position_E, side="right")
    kept = np.flatnonzero(drop_at_HS[head_E, segment_E] > first)
    kept = kept[np.lexsort((position_E[kept], head_E[kept]))]
    held_H = np.bincount(head_E[kept], minlength=heads)
    drawn = np.arange(scales.bounds[first][0], scales.bounds[last][1])
    if (held_H == held_H[0]).all():
        new_head_E = np.repeat(np.arange(heads), held_H[0] + len(drawn))
        held_HM = position_E[kept].reshape(heads, -1)
        new_position_E = np.concatenate([held_HM, np.broadcast_to(drawn, (heads, len(drawn)))], axis=1).ravel()
    else:
        new_head_E = np.concatenate([head_E[kept], np.tile(np.arange(heads), len(drawn))])
        new_position_E = np.concatenate([position_E[kept], np.repeat(drawn, heads)])
    kind_E, keep_E = (on_host(x, device) for x in (entry_kinds(new_position_E, new_head_E, condition, heads), kept))
    # Remembered for every stretch of every layer: in half the bytes.
    whose_E, which_E = (x.astype(np.int32) for x in (new_head_E, new_position_E))
    return GroupPlan(first, held_H, len(drawn), whose_E, which_E, kind_E, keep_E)


class Group:
    """The memory of some heads of a layer during a stretch, as its plan says, and attention over it."""

    def __init__(self, plan: GroupPlan, before_2BED: Tensor) -> None:
        """Take over what is kept of the entries ``before``."""
        self.plan, self.heads = plan, len(plan.held_H)
        held_2BED = select(before_2BED, 2, plan.keep_E)
        batch, width = held_2BED.shape[1], held_2BED.shape[3]
        memory = before_2BED.new_empty(2, batch, plan.entries, width)
        self.filled = int(plan.held_H[0]) if plan.aligned else int(plan.held_H.sum())
        if plan.aligned:
            memory = memory.view(2, batch, self.heads, -1, width)
            memory[:, :, :, : self.filled] = held_2BED.view(2, batch, self.heads, self.filled, width)
        else:
            memory[:, :, : self.filled] = held_2BED
        self.memory, self.aligned = memory, plan.aligned

    def attend(self, q_BH1D: Tensor, k_BH1D: Tensor, v_BH1D: Tensor, hiding_BHX: Tensor | None) -> Tensor:
        """Write a token into its room and attend to all there is, ``[B, heads, 1, D]``.

        ``hiding_BHX``: what `LineMemory._hiding` says of the group.
        """
        before, dim, new = self.filled, 3 if self.aligned else 2, 1 if self.aligned else self.heads
        self.filled += new
        place = self.memory.narrow(dim, before, new)
        torch.stack((k_BH1D, v_BH1D), out=place if self.aligned else place.unsqueeze(3))
        k, v = self.read()
        if not self.aligned:
            assert hiding_BHX is not None
            return shared_attention(q_BH1D, k, v, select(hiding_BHX, 2, self.plan.kind_E[: self.filled]))
        bias_BH1M = None
        if hiding_BHX is not None:
            bias_BH1M = select(hiding_BHX, 2, self.plan.kind_E).unflatten(2, (self.heads, 1, -1)).squeeze(1)
            bias_BH1M = bias_BH1M.narrow(3, 0, self.filled)
        return attention(q_BH1D, k, v, bias_BH1M)

    def read(self) -> tuple[Tensor, ...]:
        """Keys and values of all there is, ``[B, heads, M, D]`` or ``[B, E, D]``."""
        return self.memory.narrow(3 if self.aligned else 2, 0, self.filled).unbind()

    @property
    def entries_2BED(self) -> Tensor:
        """All entries of memory in the order of the plan."""
        return self.memory.flatten(2, 3) if self.aligned else self.memory

    @property
    def tokens(self) -> int:
        return self.heads * self.filled if self.aligned else self.filled


class LineMemory:
    """Executes a static schedule over lines in exactly the memory that it needs.

    ``allocated_bytes`` is what has been taken, room of the stretch included; ``tokens`` counts what is held.
    """

    def __init__(self, geometry: Geometry, schedule: Schedule) -> None:
        self.geometry, self.schedule = geometry, schedule
        self.tokens = self.allocated_bytes = self.peak_bytes = 0
        self._groups_L: list[list[Group]] = [[] for _ in range(geometry.layers)]
        starts = [t for t in range(2, len(geometry.scales)) if (schedule.drop_at_LHS[..., :t] == t).any()]
        self._last = dict(zip([1, *starts], [t - 1 for t in [*starts, len(geometry.scales)]], strict=True))
        self._cuts_L: list[list[slice]] = []
        self._hidden_BT: Tensor | None = None
        self._hiding_BHX: dict[tuple[int, bool], Tensor] = {}  # of groups of so many heads, aligned or not

    def attend(self, layer: int, segment: int, first: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """Attention of token ``first`` of a line, which is cached with it."""
        if first == 0 and layer == 0 and segment in self._last and segment > 1:
            self._move(segment, q_BHND.device)
        groups = self._groups_L[layer]
        self.tokens += self.geometry.heads
        if len(groups) == 1:
            return groups[0].attend(q_BHND, k_BHND, v_BHND, self._hiding(groups[0], q_BHND))
        cuts = self._cuts_L[layer]
        outs = [
            group.attend(q_BHND[:, cut], k_BHND[:, cut], v_BHND[:, cut], self._hiding(group, q_BHND))
            for group, cut in zip(groups, cuts, strict=True)
        ]
        return torch.cat(outs, 1)

    def _hiding(self, group: Group, like: Tensor) -> Tensor | None:
        """What hides entries from the heads of a group (`attention.hiding`), if anything does."""
        if group.aligned and self._hidden_BT is None:
            return None
        known, key = self._hiding_BHX, (group.heads, group.aligned)
        if key not in known:
            known[key] = hiding(self._hidden_BT, self.geometry.scales.tokens[0], group.heads, like)
            if group.aligned:  # every head reads its own entries, and only what nobody sees is hidden
                known[key] = known[key].amax(1, keepdim=True)
        return known[key]

    def release(self) -> None:
        """Let go of everything: the image is drawn."""
        self._groups_L = [[] for _ in self._groups_L]
        self._hiding_BHX.clear()
        self.tokens = self.allocated_bytes = 0

    def entries(self, layer: int) -> LineEntries:
        """What a layer holds now."""
        return LineEntries(self._groups_L[layer], self._cuts_L[layer])

    def take_condition(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor, hidden_BT: Tensor | None) -> None:
        """Cache what the schedule keeps of a condition, and take the room of the first stretch."""
        self._hidden_BT = hidden_BT
        table_HS = self.schedule.drop_at_LHS[layer]
        cuts = self._remember(
            ("cuts", table_HS.tobytes(), len(k_BHTD)), lambda: cut_heads(table_HS, self.geometry.scales, len(k_BHTD))
        )
        self._cuts_L.append(cuts)
        for cut in cuts:
            both = torch.stack((k_BHTD[:, cut], v_BHTD[:, cut])).flatten(2, 3)
            plan = self._plan(table_HS[cut], 1, None, k_BHTD.device)
            self._groups_L[layer].append(Group(plan, both))
        self._count()

    def _move(self, line: int, device: torch.device) -> None:
        """Begin a stretch: every layer moves what it keeps into new memory."""
        jobs = []
        for layer, groups in enumerate(self._groups_L):
            tables = [self.schedule.drop_at_LHS[layer][cut] for cut in self._cuts_L[layer]]
            plans = [self._plan(table, line, group.plan, device) for table, group in zip(tables, groups, strict=True)]
            growth = sum(plan.entries - group.plan.entries for plan, group in zip(plans, groups, strict=True))
            jobs.append((growth, layer, plans))
        for _, layer, plans in sorted(jobs, key=lambda job: job[:2]):
            groups = self._groups_L[layer]
            for i, plan in enumerate(plans):
                groups[i] = Group(plan, groups[i].entries_2BED)
        self._count()

    @property
    def holders(self) -> list[Group]:
        """What memory is in."""
        return [group for groups in self._groups_L for group in groups]

    def _count(self) -> None:
        self.tokens = sum(group.tokens for group in self.holders)
        self.allocated_bytes = sum(group.memory.nbytes for group in self.holders)
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)

    def _plan(
        self, drop_at_HS: npt.NDArray[np.integer], line: int, before: GroupPlan | None, device: torch.device
    ) -> GroupPlan:
        last, scales = self._last[line], self.geometry.scales
        key = ("lines", drop_at_HS.tobytes(), line, device)
        return self._remember(key, lambda: plan_group(drop_at_HS, scales, line, last, before, device))

    def _remember(self, key: Hashable, work_out: Any) -> Any:
        known = self.schedule.worked_out
        if key not in known:
            known[key] = work_out()
        return known[key]


def cut_heads(drop_at_HS: npt.NDArray[np.integer], scales: ScaleSchedule, batch: int) -> list[slice]:
    """The groups of a layer's heads, all equally large but the last: what takes least at the end of the image."""
    heads, last = len(drop_at_HS), len(scales) - 1
    read_H = (drop_at_HS[:, :last] > last) @ np.array(scales.tokens[:last]) + scales.tokens[last]

    def cuts_of(size: int) -> list[slice]:
        return [slice(first, min(first + size, heads)) for first in range(0, heads, size)]

    def cost(size: int) -> float:
        total = 0.0
        for cut in cuts_of(size):
            own_H = read_H[cut]
            shared = not (own_H == own_H[0]).all()
            total += GROUP_PRODUCTS + batch * own_H.sum() * (SHARED_PRODUCT * len(own_H) if shared else 1)
        return total

    return cuts_of(min(range(heads, 0, -1), key=cost))


@dataclass(frozen=True, eq=False)
class LineEntries:
    """What a layer has read at the end of a line, for those who look on (`heatkv.cache.seam.Entries`)."""

    groups: Sequence[Group]
    cuts: Sequence[slice]

    def all_heads(self) -> tuple[Tensor, Tensor]:
        if not all(group.plan.aligned for group in self.groups):
            raise ValueError("heads hold different tokens: look at them one by one")
        parts = [group.read() for group in self.groups]
        k_BHMD, v_BHMD = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return k_BHMD, v_BHMD

    def of_head(self, head: int) -> tuple[Tensor, Tensor, npt.NDArray[np.integer]]:
        index = next(i for i, cut in enumerate(self.cuts) if cut.start <= head < cut.stop)
        group, head = self.groups[index], head - self.cuts[index].start
        plan, (k, v) = group.plan, group.read()
        if plan.aligned:
            positions = plan.position_E.reshape(group.heads, -1)[head, : group.filled]
            return k[:, head], v[:, head], positions
        own = np.flatnonzero(plan.head_E[: group.filled] == head)
        own = own[np.argsort(plan.position_E[own], kind="stable")]
        chosen = torch.from_numpy(own).to(k.device)
        return k[:, chosen], v[:, chosen], plan.position_E[own]
