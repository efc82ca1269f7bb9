"""Tests. A package, so that they share `tests.tiny` and their fakes by name."""
