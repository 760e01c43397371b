"""How the pocket model was made: one module per stage of the build. `python -m recipes.pocket --help`."""
