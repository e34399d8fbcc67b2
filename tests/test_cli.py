"""The command line as a user meets it: what it prints, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from thrifty.cli import main

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def thrifty(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thrifty.cli", *arguments], env=ENVIRONMENT, capture_output=True, text=True, **options
    )  # type: ignore[call-overload]


def only_error(stderr: str) -> str:
    """Return the one line that a mistake prints, progress lines apart."""
    lines = [line for line in stderr.splitlines() if "tokens/s" not in line and line.strip()]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail as a user's mistake does, and return its line."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["thrifty", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        return only_error(capsys.readouterr().err)

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("cli") / "run"
    done = thrifty(
        "bench", "--limit", "4", "--methods", "first-try", "--max-tokens", "200", "--out", str(out), "--json"
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_bench_prints_the_summary_alone_and_writes_everything(
    run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = run
    summary = json.loads(done.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert {"records.jsonl", "summary.json", "pareto.png", "report.html"} <= {p.name for p in out.iterdir()}
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_report_redraws_and_compare_compares(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = run
    (out / "pareto.png").unlink()
    redrawn = thrifty("report", str(out))
    assert redrawn.returncode == 0, redrawn.stderr
    assert "first-try" in redrawn.stdout
    assert (out / "pareto.png").exists()
    compared = thrifty("compare", str(out), str(out))
    assert compared.returncode == 0, compared.stderr
    assert "vanilla" in compared.stdout


def test_ask_streams_then_accounts() -> None:
    done = thrifty("ask", "Solve the following multiplication: 3 * 4. Give only the result as your final answer.",
                   "--method", "first-try", "--max-tokens", "200")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "</think>" in done.stdout
    assert "\\boxed{12}" in done.stdout
    assert "tokens in all" in done.stderr
    as_json = thrifty("ask", "3 * 4", "--max-tokens", "60", "--json")
    trace = json.loads(as_json.stdout)
    assert trace["usage"]["prompt"] > 0
    assert "".join(s["text"] for s in trace["segments"])


def test_tune_writes_what_a_method_takes(tmp_path: Path) -> None:
    gates = tmp_path / "gates.json"
    task = "rg:chain_sum(min_terms=2,max_terms=2,min_digits=1,max_digits=1)"
    done = thrifty("tune", "first-try(qrc=false,width=8)", "--task", task, "--limit", "12", "--max-tokens", "120",
                   "--out", str(gates))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "candidate: " in done.stdout
    assert done.stdout.splitlines()[-2:] == [str(gates), str(gates.with_suffix(".safetensors"))]
    assert "traces: 12/12" in done.stderr
    assert json.loads(gates.read_text())["settings"]["width"] == 8
    asked = thrifty("ask", "3 + 4", "--method", f"first-try(gates='{gates}')", "--max-tokens", "60")
    assert asked.returncode == 0, asked.stderr


def test_methods_lists_seventy_systems_and_the_baselines() -> None:
    rows = json.loads(thrifty("methods", "--json").stdout)
    assert sum(r["kind"] == "published" for r in rows) == 70
    assert set(rows[0]) == {"slug", "title", "arxiv", "family", "needs", "claim", "status", "kind"}
    available = {r["slug"] for r in rows if r["status"] == "available"}
    assert {"vanilla", "no-think", "cap", "s1", "cgrs", "first-try"} <= available
    only = json.loads(thrifty("methods", "--family", "control", "--json").stdout)
    assert {r["family"] for r in only} == {"control"}
    assert "delta=0.9" in thrifty("methods", "show", "cgrs").stdout
    assert json.loads(thrifty("methods", "show", "cgrs", "--json").stdout)["options"]["delta"] == 0.9
    assert "planned" in thrifty("methods", "show", "sim-cot").stdout


def test_doctor_tells_the_template_and_which_methods_run() -> None:
    found = json.loads(thrifty("doctor", "--json").stdout)
    assert "opened in the prompt" in found["model"]["think"]
    assert found["methods"]["cgrs"] == "runs"
    none = json.loads(thrifty("doctor", "--think", "none", "--json").stdout)
    assert none["methods"]["cgrs"].startswith("does not run")


def test_mistakes_are_one_line_that_names_the_fix(tmp_path: Path, mistake: Callable[..., str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "1 + 1", "answer": "2"}\nnot json\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"question": "7 " * 3000, "answer": "7"}) + "\n")
    bench = ("bench", "--out", str(tmp_path / "run"), "--limit", "2")
    assert "Did you mean cgrs" in mistake(*bench, "--methods", "cgr")
    assert "planned" in mistake(*bench, "--methods", "sim-cot")
    assert "Did you mean control" in mistake(*bench, "--methods", "family:contrl")
    assert "no model 'pebbel'" in mistake(*bench, "--model", "pebbel")
    assert "chain_sum" in mistake(*bench, "--task", "rg:chain_sun")
    assert "unknown task" in mistake(*bench, "--task", "mixx")
    assert "line 2" in mistake(*bench, "--task", str(broken))
    assert "empty.jsonl" in mistake(*bench, "--task", str(empty))
    assert "context" in mistake("bench", "--out", str(tmp_path / "long"), "--task", str(long))
    assert "unknown family" in mistake("methods", "--family", "contrl")
    assert "question is empty" in mistake("ask", " ")
    assert "holds no run" in mistake("report", str(tmp_path))
    assert "temperature" in mistake(*bench, "--temperature", "-1")
    assert "think format" in mistake(*bench, "--think", "thonk")
    assert "dtype" in mistake(*bench, "--dtype", "float12")
    tune = ("--out", str(tmp_path / "gates.json"))
    assert "nothing to tune" in mistake("tune", "cap", *tune)
    assert "no option 'sample'" in mistake("tune", "diffadapt(sample=2)", *tune)
    assert "too few" in mistake("tune", "cgrs", "--limit", "3", *tune)
    assert "thrifty tune diffadapt" in mistake(*bench, "--methods", "diffadapt", "--model", "pebble-small")


def test_skip_bad_keeps_the_rest(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "1 + 1", "answer": "2"}\nnot json\n{"question": "2 + 1", "answer": "3"}\n')
    done = thrifty("bench", "--task", str(broken), "--skip-bad", "--methods", "vanilla", "--max-tokens", "60",
                   "--out", str(tmp_path / "run"), "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["methods"]["vanilla"]["n"] == 2
    assert "1 broken line" in done.stderr


def test_an_unreachable_server_is_one_line(mistake: Callable[..., str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    assert "no server answers" in mistake("ask", "1 + 1", "--model", f"http://127.0.0.1:{port}/v1#m")


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: the write fails in the middle of a record."""
    out = tmp_path / "run"
    arguments = ("bench", "--limit", "6", "--methods", "vanilla", "--max-tokens", "60", "--out", str(out), "--no-caps")

    def small_disk() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    full = thrifty(*arguments, preexec_fn=small_disk)
    assert full.returncode == 2
    assert "records so far are intact" in only_error(full.stderr)
    kept = (out / "records.jsonl").read_text().splitlines()
    assert 0 < len(kept) < 6
    assert all(json.loads(r)["method"] == "vanilla" for r in kept)
    assert thrifty(*arguments).returncode == 0
    assert (out / "records.jsonl").read_text().splitlines()[: len(kept)] == kept


def test_import_and_help_stay_light() -> None:
    heavy = ("torch", "transformers", "numpy")
    code = f"import sys, thrifty, thrifty.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    help_text = thrifty("--help")
    assert help_text.returncode == 0
    for verb in ("methods", "bench", "ask", "tune", "report", "compare", "doctor"):
        assert verb in help_text.stdout


def test_interrupted_it_says_how_to_go_on(tmp_path: Path) -> None:
    import signal

    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "thrifty.cli", "bench", "--limit", "200", "--methods", "vanilla", "--out", str(out)],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    records = out / "records.jsonl"
    while time.monotonic() < deadline and not (records.exists() and records.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "run the same command to go on" in errors
    assert "Traceback" not in errors
    assert thrifty("report", str(out)).returncode == 0
