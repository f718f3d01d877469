"""The web app: layout, wiring and pictures. All maths lives in ``heatkv``."""
