"""What `plan` computes, from shapes alone: `shapes` (what a model is), `trace` (what running it holds and
computes), `memory` (what each stage needs), `cards` (how fast), `advice` (what to change). No weights are
read, nothing is downloaded.
"""
