"""Check this project on a machine with a GPU: `python -m tests.gpu`."""
