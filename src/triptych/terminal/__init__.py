"""What a person sees of a command: progress, summary, errors, and the silence of libraries. Only `cli` uses
it.
"""
