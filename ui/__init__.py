"""The browser app: a page to chat about pictures, see where the model looked, and teach it.

May use finetune and vqa_app. `app` and `cli` stand above web, which stands above teaching, chat and
storage. Only `web.gradio_endpoint` imports gradio.
"""
