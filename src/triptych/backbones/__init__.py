"""Model families, one file each. `base.py` is the contract, `settings.py` what a model recommends (no torch there)."""
