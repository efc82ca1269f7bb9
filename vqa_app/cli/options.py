"""The command-line options that several commands share: which model, and what a picture may cost.

One wording for all; what they mean is `vqa_app.checkpoints.loader.load_model`'s to say.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from vqa_app.devices import Dtype, Quantization

ModelName: TypeAlias = Annotated[
    str, typer.Option("--model", "-m", help="builtin, a hub id, or a folder: a model or a run.")
]
AdapterName: TypeAlias = Annotated[
    str | None, typer.Option("--adapter", help="An adapter on it: a run's folder or a hub id.")
]
Quantize: TypeAlias = Annotated[
    Quantization | None,
    typer.Option(
        "--quantize", help="Weights in 4 or 8 bits, by bitsandbytes: a third or half of the memory."
    ),
]
Device: TypeAlias = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Precision: TypeAlias = Annotated[
    Dtype, typer.Option("--dtype", help="auto takes what suits the device.")
]
Revision: TypeAlias = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")
]
Offline: TypeAlias = Annotated[bool, typer.Option("--offline", help="Download nothing.")]

MaxFileMb: TypeAlias = Annotated[
    float,
    typer.Option(help="Largest picture file.", metavar="MB", envvar="VQA_MAX_FILE_MB"),
]
MaxMegapixels: TypeAlias = Annotated[
    float,
    typer.Option(
        help="Largest picture; Pillow decodes up to 89.",
        metavar="MP",
        envvar="VQA_MAX_MEGAPIXELS",
    ),
]
