"""Pictures drawn so far, for all visitors: the same prompt, seed and recipe always give the same picture."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from app.pictures import data_url
from heatkv.generate import Generation, ScaleEvent

MAX_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class Drawing:
    """A finished picture: the run without its previews, and these as addresses a page can show.

    ``kept_LHS`` is the share of every source's tokens that a policy without a schedule still held at the last scale;
    None for the others.
    """

    run: Generation
    frames: tuple[str, ...]
    kept_LHS: npt.NDArray[np.float64] | None = None

    @property
    def grown(self) -> bool:
        """Whether the picture is known after every scale, and not as a whole alone."""
        return len(self.frames) == len(self.run.bits)

    @property
    def size(self) -> int:
        return sum(map(len, self.frames)) + self.run.pixels.nbytes + sum(bits.nbytes for bits in self.run.bits)


def drawing(run: Generation, kept_LHS: npt.NDArray[np.float64] | None = None) -> Drawing:
    """``run`` as it is kept: previews become small pictures, the last one stays whole."""
    last = run.scales[-1]
    frames = [data_url(e.pixels, preview=e is not last) for e in run.scales if e.pixels is not None]
    events: tuple[ScaleEvent, ...] = tuple(replace(event, pixels=None) for event in run.scales)
    return Drawing(replace(run, scales=events), tuple(frames), kept_LHS)


class Gallery:
    """The pictures used last, up to `MAX_BYTES`."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Drawing] = OrderedDict()
        self._size = 0

    def find(self, key: str, grown: bool = True) -> Drawing | None:
        """The picture; where ``grown`` is asked for, only one that was kept with what came before it."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found if found is not None and (found.grown or not grown) else None

    def keep(self, key: str, picture: Drawing) -> None:
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                if known.grown or not picture.grown:
                    return
                self._size -= known.size
            self._kept[key] = picture
            self._size += picture.size
            while self._size > self._limit and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                self._size -= gone.size
