"""The training recipe of the pocket model: one module per stage. `python -m recipes.pocket --help`."""
