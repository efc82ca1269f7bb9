"""What the chat page does: answers, conversations, model choice, attention view, export.

May use storage.
"""
