"""The browser: a page to chat about pictures, see where the model looked, and teach it.

Layers inside, upper ones know the lower: cli → app → layout, routes → handlers → hub, teach,
training → render → store, pictures. Only `app`, `layout` and `api` import gradio.
"""
