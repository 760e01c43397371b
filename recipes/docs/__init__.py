"""How the site is made, `python -m recipes.docs.site`, and the page of all errors, `… .errors`."""
