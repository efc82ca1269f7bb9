"""The browser: a page to chat about pictures, see where the model looked, and teach it.

Layers inside, upper ones know the lower: cli → app → layout, routes → chats, insight, lessons,
training, warming → handlers → hub, teach → sent → render → store, pictures. Only `app`, `layout`
and `api` import gradio.
"""
