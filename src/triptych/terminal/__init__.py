"""A command's output for people: progress, summary, errors, and quiet libraries. Only `cli` uses it."""
