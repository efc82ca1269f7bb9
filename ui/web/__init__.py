"""The page and its routes on Gradio and FastAPI.

May use chat, teaching, storage.
"""
