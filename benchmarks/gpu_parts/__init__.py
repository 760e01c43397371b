"""The parts of `gpu.py`, each by itself, and what they share: `bench` (rows, clocks, memory) and `model`
(random weights)."""

PARTS = {
    "machine": (15, "machine:machine"),
    "gradients": (35, "gradients:gradients"),
    "klein_equality": (25, "klein_parts:klein_equality"),
    "klein_sampling": (100, "klein_parts:klein_sampling"),
    "klein_training": (50, "klein_parts:klein_training"),
    "waiting": (55, "profiled:waiting"),
    "training": (60, "training:training"),
    "klein_presets": (40, "presets:klein_presets"),
    "presets": (60, "presets:presets"),
    "with_lora": (30, "sampling:with_lora"),
    "sampling": (40, "sampling:sampling"),
    "swapping": (20, "memory:swapping"),
    "optimizers": (25, "training:optimizers"),
    "more_sampling": (45, "sampling:more_sampling"),
    "compiled": (45, "sampling:compiled"),
    "equality": (40, "equality:equality"),
    "pocket": (60, "pocket_run:pocket"),
    "quantised": (60, "memory:quantised"),
}
"""By name: the seconds a part may take, and where it is. The most telling come first; what no longer fits
into the budget is left out."""
