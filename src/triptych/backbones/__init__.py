"""Model families, one file each. `base.py` is the contract, `autoencoder.py` what most share, `settings.py`
what a model recommends (no torch there).
"""
