"""The parts of `gpu.py`, each by itself, and what they share: `bench` (rows, clocks, memory) and `model`
(random weights)."""

PARTS = {
    "machine": (15, "machine:machine"),
    "equality": (40, "equality:equality"),
    "sampling": (85, "sampling:sampling"),
    "training": (80, "training:training"),
    "pocket": (55, "pocket_run:pocket"),
    "quantised": (60, "memory:quantised"),
    "waiting": (30, "sampling:waiting"),
    "presets": (60, "memory:presets"),
    "with_lora": (35, "sampling:with_lora"),
    "swapping": (25, "memory:swapping"),
    "optimizers": (25, "training:optimizers"),
    "more_sampling": (60, "sampling:more_sampling"),
    "compiled": (90, "sampling:compiled"),
}
"""By name: the seconds a part may take, and where it is. The most telling come first; what no longer fits
into the budget is left out."""
