"""The computations of `plan`, from shapes alone, without reading or downloading weights: `shapes` (a model's
parts), `trace` (memory and arithmetic of a run), `memory` (the needs of each stage), `cards` (speed),
`advice` (changes that make a stage fit).
"""
