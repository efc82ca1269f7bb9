"""`python -m vqa_app` is `vqa-app`."""

from vqa_app.cli.entry import main

if __name__ == "__main__":
    main()
