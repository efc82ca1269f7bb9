"""Icons and emoji of everyday things, in several hands."""
