"""The program `vqa-app`: a question for a running server, or one of the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `vqa-app` and exit with one of `vqa_app.cli.main.EXIT_CODES`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["ask"]:
        from vqa_app.cli.quick_ask import ask_running_server

        code = ask_running_server(words[1:])
        if code is not None:
            raise SystemExit(code)
    from vqa_app.cli.main import main

    main(words)
