"""`python -m finetune ...` and `accelerate launch -m finetune ...`: what `vqa-app finetune ...`
does.
"""

import sys

from vqa_app.cli.main import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
