"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="pebble, a folder, a .gguf file, a hub id, or http://HOST:PORT/v1#MODEL")
]
DeviceOption = Annotated[str | None, typer.Option(help="For local models, such as cuda.")]
DtypeOption = Annotated[str | None, typer.Option(help="For local models: float64, float32, bfloat16 or float16.")]
ThinkOption = Annotated[
    str | None, typer.Option(help="Think format: think, harmony, mistral, none, or '<open>,</close>'. Default: detect.")
]
