"""Model families, one folder each with the same file names.

`contract.py` is the interface that a family implements. `context.py` holds the keys and values of clean
context, `registry.py` finds the family of a model, and `settings.py` (without torch) the settings that a
model recommends. `autoencoder_kl.py` is the autoencoder that most families share.
"""
