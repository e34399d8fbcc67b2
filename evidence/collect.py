"""Turn a finished bench into evidence files, one a method: ``python evidence/collect.py RUN 'COMMAND'``.

What was found in words is written by hand into each file's ``finding`` and survives collecting again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from pathlib import Path

from thrifty.bench.runner import summarise_run
from thrifty.catalogue import CATALOGUE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path, help="the --out folder of the bench")
    parser.add_argument("command", help="the command that made it")
    parser.add_argument("--suffix", default="", help="added to the file names, such as -hard")
    parser.add_argument("--date", default=datetime.datetime.now(datetime.UTC).date().isoformat())
    args = parser.parse_args()
    summary = summarise_run(args.run)
    for spec, result in summary["methods"].items():
        if spec == "vanilla":
            continue
        slugs = [part.partition("(")[0] for part in spec.split("+")]
        plain = re.sub(r"\w+='[^']*/[^']*',?", "", spec)  # files that tuning wrote
        name = re.sub(r"[^A-Za-z0-9.+_-]+", "-", plain).strip("-")
        path = Path(__file__).parent / f"{name}{args.suffix}.json"
        entry = CATALOGUE[slugs[0]]
        before = json.loads(path.read_text()) if path.exists() else {}
        evidence = {
            "slug": spec,
            "title": spec,
            "family": entry.family,
            "command": args.command,
            "model": summary["model"],
            "task": summary["task"],
            "n": result["n"],
            "date": args.date,
            "baseline": summary["methods"]["vanilla"],
            "result": result,
            "finding": before.get("finding", ""),
        }
        path.write_text(json.dumps(evidence, indent=1) + "\n")
        print(path.name)


if __name__ == "__main__":
    main()
