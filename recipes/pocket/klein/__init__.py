"""The recipe of the klein pocket, a tiny FLUX.2-klein of the same world: `python -m recipes.pocket.klein`."""
