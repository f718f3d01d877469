"""HeatKV: head-specific KV-cache budgets for visual autoregressive image models.

model    = heatkv.load("pocket")
scores   = heatkv.calibrate(model, prompts)
schedule = heatkv.plan(scores, budget=0.2)
result   = heatkv.generate(model, "red apple", schedule=schedule)
"""

from heatkv.calibration import calibrate
from heatkv.generate import Generation, generate
from heatkv.models import load
from heatkv.policies import plan
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores

__version__ = "0.1.0"
__all__ = [
    "Generation", "Geometry", "HeadScores", "ScaleSchedule", "Schedule", "calibrate", "generate", "load", "plan",
]  # fmt: skip
