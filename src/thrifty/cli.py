"""The command line: measure, ask, look."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty import __version__
from thrifty.errors import ThriftyError
from thrifty.options import DeviceOption, DtypeOption, ModelOption, ThinkOption
from thrifty.serve.command import serve
from thrifty.terminal import console, print_json, progress, stream

if TYPE_CHECKING:
    from thrifty.models.base import Settings

app = typer.Typer(
    name="thrifty",
    help="The same answers for fewer reasoning tokens: measure which method saves most on your model and tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEFAULT_METHODS = "vanilla,no-think,cgrs,first-try,cgrs+first-try"

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
MaxTokensOption = Annotated[int, typer.Option(help="Limit on a response: thinking and answer together.")]
BudgetOption = Annotated[int | None, typer.Option(help="Limit on the thinking, for every method.")]
ReserveOption = Annotated[int | None, typer.Option(help="Tokens kept for the answer. Default: a quarter, at most 256.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]
SeedOption = Annotated[int, typer.Option(help="Picks the problems and the random numbers.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"thrifty {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


methods_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(methods_app, name="methods", help="The published systems and the baselines: what each needs and claims.")


@methods_app.callback()
def methods(
    context: typer.Context,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List all systems."""
    if context.invoked_subcommand:
        return
    from thrifty.catalogue import listing

    rows = listing(family)  # type: ignore[arg-type]  # it refuses an unknown family itself
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("system", "family", "status", "needs", "claim"):
        table.add_column(column, overflow="fold")
    for row in rows:
        style = "bold" if row["status"] == "available" else "dim"
        table.add_row(row["slug"], row["family"], row["status"], " ".join(row["needs"]), row["claim"], style=style)
    console().print(table)


@methods_app.command("show")
def show(slug: str, as_json: JsonOption = False) -> None:
    """Show one system: its paper, its claim, its options and their defaults."""
    from thrifty.catalogue import CATALOGUE, listing, status
    from thrifty.errors import UnknownName
    from thrifty.methods import ALIASES, list_methods

    slug = ALIASES.get(slug, slug)
    if slug not in {*CATALOGUE, *list_methods()}:
        raise UnknownName("method", slug, {*CATALOGUE, *list_methods()})
    row: dict[str, Any] = next((dict(r) for r in listing() if r["slug"] == slug), {"slug": slug, "status": "available"})
    text = ""
    runnable = slug in list_methods() and (slug not in CATALOGUE or status(CATALOGUE[slug]) == "available")
    if runnable:
        text, row["options"] = _options_of(slug)
    if as_json:
        print_json(row)
        return
    for key in ("slug", "title", "arxiv", "family", "status", "needs", "claim"):
        value = row.get(key)
        if value:
            typer.echo(f"{key:<8}{' '.join(value) if isinstance(value, list) else value}")
    if runnable:
        typer.echo(f"\n{text}\n\noptions " + (", ".join(f"{k}={v!r}" for k, v in row["options"].items()) or "none"))


def _options_of(slug: str) -> tuple[str, dict[str, Any]]:
    import dataclasses
    import inspect

    from thrifty.methods import method_class

    cls = method_class(slug)
    return inspect.getdoc(cls) or "", {f.name: f.default for f in dataclasses.fields(cls)}


@app.command()
def bench(
    model: ModelOption = "pebble",
    task: Annotated[
        str, typer.Option("--task", "-t", help="mix, rg:NAME(option=value), FILE.jsonl, gsm8k, or hf:OWNER/NAME")
    ] = "mix",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods with commas between, as 'cap(budget=200),cgrs+first-try'; 'family:control' stands for all of "
            "a family. Vanilla always runs. "
            f"Default: those of {DEFAULT_METHODS} that run on the model."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of problems; 0 for all of a finite task.")] = 100,
    seed: SeedOption = 0,
    samples: Annotated[int, typer.Option(min=1, help="Responses for each problem.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded together. Results do not depend on it.")] = 32,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; resumes it. Default: runs/MODEL-TASK-SEED.")
    ] = None,
    as_json: JsonOption = False,
    max_tokens: MaxTokensOption = 1024,
    thinking_budget: BudgetOption = None,
    answer_reserve: ReserveOption = None,
    temperature: TemperatureOption = 0.0,
    top_k: Annotated[int, typer.Option(help="0 for all.")] = 0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    min_p: Annotated[float, typer.Option()] = 0.0,
    loop_stop: Annotated[bool, typer.Option(help="End thinking that only repeats itself.")] = True,
    caps: Annotated[bool, typer.Option(help="Also run the plain cap at each method's own mean length.")] = True,
    skip_bad: Annotated[bool, typer.Option(help="Leave out broken lines of a task file.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    think: ThinkOption = None,
) -> None:
    """Measure methods on a task: accuracy, tokens, and both against vanilla, with uncertainty."""
    from thrifty.bench.report import write_reports
    from thrifty.bench.runner import Bench
    from thrifty.bench.table import table
    from thrifty.methods import FAMILY_PREFIX, expand_families, family_methods, get_method, split_by_access
    from thrifty.models import load_model
    from thrifty.spec import split_specs
    from thrifty.tasks import load_task

    specs = split_specs(methods or DEFAULT_METHODS)
    for spec in specs:  # a typing error should not wait for a model to load
        if spec.startswith(FAMILY_PREFIX):
            family_methods(spec.removeprefix(FAMILY_PREFIX))
        else:
            get_method(spec)
    source = load_task(task, skip_bad=skip_bad)
    settings = _settings(
        max_tokens=max_tokens,
        thinking_budget=thinking_budget,
        answer_reserve=answer_reserve,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        samples=samples,
        batch_size=batch_size,
        loop_stop=loop_stop,
    )
    loaded = load_model(model, device=device, dtype=dtype, think=think)
    specs, reasons = expand_families(specs, loaded) if methods else split_by_access(specs, loaded)
    for reason in reasons:
        typer.echo(f"left out: {reason}", err=True)
    folder = out or Path("runs") / _file_name(f"{loaded.name}-{source.name}-{seed}")
    run = Bench(loaded, source, tuple(specs), folder, limit or None, settings, caps)
    try:
        with progress() as show_progress:
            summary = run.run(show_progress)
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted: everything so far is in {folder}; run the same command to go on", err=True)
        raise typer.Exit(130) from None
    finally:
        loaded.close()
    paths = write_reports(folder, summary)
    skipped = getattr(source, "skipped", ())
    if skipped:
        typer.echo(f"left out {len(skipped)} broken lines of {task}", err=True)
    if as_json:
        print_json(summary)
        return
    console().print(table(summary))
    typer.echo("\n".join(str(p) for p in paths))


@app.command()
def report(folder: Path, as_json: JsonOption = False) -> None:
    """Sum up and redraw a run from its records, as far as they go."""
    from thrifty.bench.report import write_reports
    from thrifty.bench.runner import summarise_run
    from thrifty.bench.table import table

    summary = summarise_run(folder)
    try:
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise ThriftyError(f"cannot write {folder / 'summary.json'}: {error.strerror}") from error
    paths = write_reports(folder, summary)
    if as_json:
        print_json(summary)
        return
    console().print(table(summary))
    typer.echo("\n".join(str(p) for p in paths))


@app.command()
def compare(first: Path, second: Path) -> None:
    """Set two runs side by side."""
    from thrifty.bench.runner import summarise_run
    from thrifty.bench.table import compare as compare_runs

    console().print(compare_runs(summarise_run(first), summarise_run(second)))


@app.command()
def ask(
    question: str,
    model: ModelOption = "pebble",
    method: Annotated[str, typer.Option(help="As 'cgrs+first-try'.")] = "vanilla",
    as_json: JsonOption = False,
    max_tokens: MaxTokensOption = 2048,
    thinking_budget: BudgetOption = None,
    answer_reserve: ReserveOption = None,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    think: ThinkOption = None,
) -> None:
    """Ask one question: the thinking and the answer as they come, then what they cost."""
    from thrifty.methods import get_method
    from thrifty.models import load_model

    if not question.strip():
        raise ThriftyError("the question is empty")
    chosen = get_method(method)
    settings = _settings(
        max_tokens=max_tokens,
        thinking_budget=thinking_budget,
        answer_reserve=answer_reserve,
        temperature=temperature,
        seed=seed,
        batch_size=1,
    )
    loaded = load_model(model, device=device, dtype=dtype, think=think)
    chosen.check(loaded)
    try:
        trace = stream(loaded, chosen, question, settings, silent=as_json)
    finally:
        loaded.close()
    if as_json:
        print_json(asdict(trace))
        return
    usage = trace.usage
    parts = {k: v for k, v in asdict(usage).items() if v and k not in ("flops", "wall_seconds")}
    typer.echo(
        "\n"
        + ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in parts.items())
        + f"; {usage.total:,} tokens in all, {usage.wall_seconds:.1f} s, ended by {trace.exit_reason}",
        err=True,
    )


@app.command()
def tune(
    name: Annotated[
        str, typer.Argument(help="A method, options of its tuning in brackets, as 'diffadapt(samples=4)'.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file to write (default: runs/METHOD-MODEL-TASK.json); gates lie beside it."),
    ] = None,
    model: ModelOption = "pebble",
    task: Annotated[
        str, typer.Option("--task", "-t", help="Its train split; measure a file as FILE.jsonl(hold_out=true) then.")
    ] = "mix",
    limit: Annotated[int, typer.Option(min=1, help="Number of problems.")] = 200,
    seed: SeedOption = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded together.")] = 32,
    as_json: JsonOption = False,
    max_tokens: MaxTokensOption = 1024,
    temperature: TemperatureOption = 0.0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    think: ThinkOption = None,
) -> None:
    """Teach a method what it must know of your model: train its gates, calibrate its thresholds."""
    from thrifty.methods import tunable_class
    from thrifty.methods.tuning import Tuning, lines_of
    from thrifty.models import load_model
    from thrifty.models.torch import TorchModel
    from thrifty.spec import parse_spec
    from thrifty.tasks import load_task

    slug, options = parse_spec(name)
    cls = tunable_class(slug)
    source = load_task(task, hold_out=True)
    settings = _settings(max_tokens=max_tokens, temperature=temperature, seed=seed, batch_size=batch_size)
    loaded = load_model(model, device=device, dtype=dtype, think=think)
    try:
        if not isinstance(loaded, TorchModel):
            raise ThriftyError(f"{slug!r} is tuned on a model's inside: load the weights here, as in --model FOLDER")
        with progress() as show_progress:
            artefact = cls.tune(Tuning(slug, loaded, source, settings, limit, options, show_progress))
    finally:
        loaded.close()
    paths = artefact.save(out or Path("runs") / f"{_file_name(f'{slug}-{model}-{source.name}')}.json")
    if as_json:
        print_json(artefact.report)
        return
    typer.echo("\n".join([*lines_of(artefact.report), *map(str, paths)]))


@app.command()
def doctor(
    model: ModelOption = "pebble",
    as_json: JsonOption = False,
    device: DeviceOption = None,
    think: ThinkOption = None,
) -> None:
    """Tell what is installed, what a model gives, how it thinks, and which methods run on it."""
    from thrifty.doctor import examine

    found = examine(model, device=device, think=think)
    if as_json:
        print_json(found)
        return
    for section, values in found.items():
        typer.echo(section)
        width = max(map(len, values))
        for key, value in values.items():
            typer.echo(f"  {key:<{width}}  {' '.join(value) if isinstance(value, list) else value}")


app.command()(serve)


def _settings(**values: Any) -> Settings:
    from thrifty.models.base import Settings

    return Settings(**values)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.")[:120]


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except ThriftyError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
