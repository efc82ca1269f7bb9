"""The page, its routes, and the Gradio endpoint for programs, on FastAPI.

May use chat, teaching, storage.
"""
