"""What lessons show on a model and what was counted for it, as ``python -m app.lessons`` found it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "lessons.json"
COUNTED = {
    "prompts", "other_seed", "least", "held", "formed", "upright", "upright_db", "clearest", "moving", "knocked",
    "strongest", "worst", "agree",
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """What was chosen and counted for one model: empty where nobody ran the command.

    ``opening`` is the prompt and seed that the page opens with, ``counts`` what the answers stand on.
    """

    opening: tuple[str, int] | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, fingerprint: str) -> Chosen:
        """From a model's folder; empty where the file is absent, of other weights, or something else."""
        try:
            found = json.loads((folder / FILE).read_text(encoding="utf-8"))
            counts = dict(found["counts"])
            if found["weights"] != fingerprint or not counts.keys() >= COUNTED:
                return cls()
            return cls((counts["prompts"][counts["moving"]], int(counts["moving"])), counts)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return cls()

    def pictures(self, policy: str) -> list[tuple[str, int, str]]:
        """Prompt, seed and policy of the strips that lessons and the first page show."""
        if not self.counts:
            return []
        prompts, moving, clearest = (self.counts[key] for key in ("prompts", "moving", "clearest"))
        return [
            (prompts[moving], moving, policy),
            (prompts[0], 0, policy),
            (prompts[clearest], clearest, policy),
            (prompts[clearest], clearest, "reverse"),
        ]
