"""Run `vqa-app finetune` as `python -m finetune ...` or `accelerate launch -m finetune ...`."""

import sys

from vqa_app.cli.main import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
