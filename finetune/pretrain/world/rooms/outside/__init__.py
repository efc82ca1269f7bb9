"""Pictures that the model does not know, and how it says so."""
