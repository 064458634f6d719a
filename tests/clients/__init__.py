"""Real clients on the exported forms: `python -m tests.clients --work FOLDER` runs all that are there."""
