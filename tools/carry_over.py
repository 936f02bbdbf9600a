"""Carry over training records that were kept under digests of source text, to keys that say what was declared.

    python tools/carry_over.py figures/paper/runs other/runs ... --into figures/full/runs

Until commit 7193fdb a record was named by a digest of its runs' configurations, the images, and the sources that trained it. For each
record that digest is computed again, from the configurations inside it and the digest of the sources of 7193fdb (the same back to
bfbd122). A record whose name is another is refused: nobody could say what trained it. What was measured stays as it is, number by
number. This is done once for all records of that time; the script stays as the proof of how.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

from snipnb.data import data_checksum
from snipnb.training.loop import Recipe
from snipnb.training.runs import RunConfig, group_name, run_key
from snipnb.training.store import Store

COMMIT = "7193fdb"
SOURCES = "efc50e0c07e8f80a7e92e8b8d51e5f284a17dc8c2c37bd74374b3078b9bc3f86"  # what its sources_digest() gives


def old_name(configs: list[dict]) -> str:
    """What the code of 7193fdb called a group of runs."""
    first = configs[0]
    content = [configs, SOURCES, data_checksum(sample=first["sample"])]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{first['model']}-{first['split']}-seed{first['init_seed']}-{digest[:16]}"


def read_old(path: Path) -> list[dict]:
    """The runs of an old record, after its own digest was checked."""
    content = json.loads(path.read_text())
    digest = content.pop("digest")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest() != digest or content["key"] != path.stem:
        raise ValueError(f"{path} is damaged or renamed: its digest or its key does not fit")
    return content["record"]["runs"]


def carry_over(path: Path, into: Store) -> int:
    """Keep the runs of one old record under their new keys; returns how many. One that is kept already stays as it is.

    Raises:
        ValueError: If the record is damaged, or was not made by those sources.
    """
    runs = read_old(path)
    name = old_name([run["config"] for run in runs])
    if name != path.stem:
        raise ValueError(f"{path} was made by other code: under the sources of {COMMIT} it would be {name}")
    facts = json.loads((path.parent / "facts" / path.name).read_text())
    configs = [RunConfig(**run["config"] | {"recipe": Recipe(**run["config"]["recipe"])}) for run in runs]
    maker = {
        "commit": COMMIT,
        "numba": "not recorded",
        "processor": "not recorded",
        **facts,  # seconds, the epochs they went into (the last ones, where a run was interrupted), networks, device, torch
        "sources_sha256": SOURCES,
        "old_key": path.stem,
    }
    into.finish(group_name(configs), dict(zip(map(run_key, configs), runs, strict=True)), maker)
    return check(into, configs, runs, path.stem)


def check(into: Store, configs: list[RunConfig], runs: list[dict], old_key: str) -> int:
    """How many runs were kept from an old record, every number of them the number that was there; NaN is null now."""
    kept, number = into.runs(), 0
    for config, run in zip(configs, runs, strict=True):
        found = kept[run_key(config)]
        if found["trained_by"].get("old_key") != old_key:
            continue
        number += 1
        for column, values in run["history"].items():
            for old, new in zip(values, found["history"][column], strict=True):
                if new is None if math.isnan(old) else new == old:
                    continue
                raise ValueError(f"{config}: {column} was {old!r} and is {new!r}")
    return number


def main() -> int:
    """Carry over everything in the given folders; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of old records, each with facts/ in it")
    parser.add_argument("--into", type=Path, required=True, help="folder for the new ones")
    given = parser.parse_args()
    into, refused = Store(given.into), 0
    for path in sorted(path for folder in given.folders for path in folder.glob("*.json")):
        try:
            print(f"{path.name}: {carry_over(path, into)} runs")
        except (ValueError, KeyError, OSError) as error:
            refused += 1
            print(f"refused: {error}", file=sys.stderr)
    print(f"{len(into.runs())} runs are kept in {given.into}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
