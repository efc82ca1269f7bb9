"""The command line: one module per command, and what commands share.

May use every other room of `vqa_app`; `finetune` and `ui` only inside the commands that need them.
"""

from vqa_app.cli.entry import main

__all__ = ["main"]
