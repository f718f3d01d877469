"""Lessons: short, each with a guess and an answer that was counted. `texts` are what they say, `chosen` what they show
and stand on.

``python -m app.lessons --model pocket`` counts (`heatkv.views.counts`) and chooses prompts where the effect shows; what
it found ships as ``lessons.json`` beside the weights. Where it is absent, lessons that need it are left out.
"""
