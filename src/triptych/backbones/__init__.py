"""Model families, one folder each with the same file names.

`contract.py` says what a family gives, `context.py` what clean context keeps, `registry.py` which family
opens a model, `settings.py` what a model recommends (no torch there). `autoencoder_kl.py` is the autoencoder
that most families share.
"""
