"""The parts of the training loop in `stages/train.py`, by responsibility: settings, data, loss, state, validation, log."""
