"""Command-line options that several commands share: the model, and the largest picture.

`vqa_app.checkpoints.loader.load_model` documents what the model options mean.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

import typer

from vqa_app.devices import Dtype, Quantization
from vqa_app.errors import UsageError

if TYPE_CHECKING:
    from vqa_app.engine.remote import RemoteServer

Device: TypeAlias = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Precision: TypeAlias = Annotated[
    Dtype, typer.Option("--dtype", help="Precision; auto chooses one for the device.")
]
Offline: TypeAlias = Annotated[bool, typer.Option("--offline", help="Download nothing.")]

MaxFileMb: TypeAlias = Annotated[
    float,
    typer.Option(help="Largest picture file, in MB.", metavar="MB", envvar="VQA_MAX_FILE_MB"),
]
MaxMegapixels: TypeAlias = Annotated[
    float,
    typer.Option(
        help="Largest picture, in megapixels; at most 89.",
        metavar="MP",
        envvar="VQA_MAX_MEGAPIXELS",
    ),
]


@dataclass(frozen=True)
class EngineOptions:
    """Which model answers, and how it is loaded.

    A command that has a parameter of this type, decorated with `with_model_options`, gets one
    command-line option for each field.
    """

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="builtin, a hub id, a folder (a model or a run), or the address of a server with"
            " OpenAI's API, as in http://localhost:11434/v1#NAME.",
        ),
    ] = "builtin"
    model_api_key: Annotated[
        str | None,
        typer.Option(
            "--model-api-key",
            help="Key for a server given with --model; the variable hides it from other users.",
            envvar="VQA_API_KEY",
            show_default=False,
        ),
    ] = field(default=None, repr=False)
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help="Adapter for the model: a run's folder or a hub id."),
    ] = None
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            "--quantize",
            help="Load the language model's weights in 4 or 8 bits, which takes a third or half of"
            " the memory. On a CPU this is for little memory and a single reader: from bfloat16"
            " weights, several at once are answered faster. On a GPU it needs bitsandbytes.",
        ),
    ] = None
    device: Device = "auto"
    dtype: Precision = "auto"
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")
    ] = None
    offline: Offline = False

    def check_names(self) -> None:
        """Check that model and adapter are folders or may be hub ids.

        Loading begins with imports that take seconds, on a busy machine minutes; this does not.

        Raises:
            VqaError: As for `vqa_app.checkpoints.source.find_local`; or a server's address cannot
                be used, or is combined with options for loading a model.
        """
        from vqa_app.checkpoints.source import find_local

        if self.server() is not None:
            self._check_server_options()
            return
        find_local(self.model, self.revision)
        if self.adapter is not None:
            find_local(self.adapter)

    def server(self) -> RemoteServer | None:
        """Return the server that answers; None if a model is loaded here."""
        from vqa_app.engine.remote import RemoteServer, is_remote

        return RemoteServer.parse(self.model, self.model_api_key) if is_remote(self.model) else None

    def _check_server_options(self) -> None:
        for name in ("adapter", "quantize", "revision", "device", "dtype"):
            if getattr(self, name) not in (None, "auto"):
                raise UsageError(
                    f"--{name} cannot be combined with a server: it has loaded its model itself.",
                    f"Leave out --{name}.",
                )

    def load_arguments(self) -> dict[str, Any]:
        """Return the arguments for `vqa_app.checkpoints.loader.load_model`."""
        arguments = dataclasses.asdict(self)
        del arguments["model_api_key"]
        return {"name": arguments.pop("model"), **arguments}

    def model_identity(self) -> dict[str, Any]:
        """Return what the answers of the model depend on; see the function of this name."""
        from vqa_app.checkpoints.manifest import quantization_of
        from vqa_app.cli.model_identity import model_identity

        return model_identity(
            self.model,
            self.adapter,
            self.quantize or quantization_of(Path(self.model)),
            self.device,
            self.dtype,
            self.revision,
        )

    def chosen_words(self) -> list[str]:
        """Return the words of a command line that choose the same model."""
        words = []
        for name in ("model", "adapter", "quantize", "device", "dtype", "revision"):
            value = getattr(self, name)
            if value != getattr(EngineOptions, name):
                words += [f"--{name}", value]
        return words

    def identity(self) -> dict[str, str | None]:
        """Return the options that may change the answers."""
        names = ("model", "adapter", "quantize", "dtype", "revision")
        return {name: getattr(self, name) for name in names}


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter of type `EngineOptions` by one option for each field."""
    hints = get_type_hints(EngineOptions, include_extras=True)
    options = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=hints[option.name],
        )
        for option in dataclasses.fields(EngineOptions)
    ]
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    name = next(parameter.name for parameter in parameters if parameter.annotation is EngineOptions)
    return expand_parameter(command, name, options, lambda values: EngineOptions(**values))


def expand_parameter(
    command: Callable[..., None],
    name: str,
    options: Sequence[inspect.Parameter],
    build: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """Replace a command's parameter by several command-line options.

    Args:
        command: A function for Typer.
        name: Its parameter.
        options: Keyword-only parameters, annotated for Typer.
        build: Makes the parameter's value from the options' values.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == name:
            parameters += options
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def wrapper(**arguments: Any) -> None:
        values = {option.name: arguments.pop(option.name) for option in options}
        command(**arguments, **{name: build(values)})

    # Typer reads both.
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {item.name: item.annotation for item in parameters}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper
