"""Icons and emoji of everyday things, in several drawing styles."""
