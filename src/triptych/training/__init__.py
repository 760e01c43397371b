"""The parts of the training loop in `verbs/train.py`: settings, data, loss, state, validation, log."""
