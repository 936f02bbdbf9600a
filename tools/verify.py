"""Recompute every verdict from the published tables: what ``make verify`` does, in seconds and without torch."""

from __future__ import annotations

import argparse
import sys
import time

from snipnb._files import published_dir
from snipnb._progress import print_anywhere
from snipnb.publish import ledger
from tools import checkout


def main(arguments: list[str] | None = None) -> int:
    """Verify the published ledgers and print what disagrees; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.verify", description=__doc__)
    parser.add_argument("claims", nargs="*", help="ids such as C20; default all")
    wanted = parser.parse_args(arguments).claims
    print_anywhere()
    figures, start, bad = checkout() / "figures", time.monotonic(), 0
    for profile in ("default", "full"):
        folder = published_dir(figures, profile)
        if not (folder / "claims.json").is_file():
            print(f"{profile}: no ledger is published", file=sys.stderr)
            bad += 1
            continue
        try:
            wrong = ledger.verify(folder, benchmarks=figures / "bench", only=wanted or None)
        except ValueError as error:
            wrong = {"ledger": [str(error)]}
        for claim, reasons in wrong.items():
            print("\n  ".join([f"{profile}, {claim}:", *reasons]))
        bad += len(wrong)
        if not wrong:
            many = len(wanted or ledger.load_claims())
            print(f"{profile}: {many} verdicts follow from their rows ({time.monotonic() - start:.0f} s)")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
