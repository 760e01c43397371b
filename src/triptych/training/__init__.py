"""The parts of the training loop in `verbs/train.py`, by responsibility: settings, data, loss, state,
validation, log.
"""
