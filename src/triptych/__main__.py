from triptych.cli import entry

entry()
