"""The browser door: a Gradio page on FastAPI."""
