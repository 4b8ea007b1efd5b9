"""Write tests/golden/STUDY.json: `python -m tests.golden.make [STUDY ...]`, at the root of the checkout.

Only when a change of behaviour is wanted, in the commit that makes it, whose message says what moved and why; never to
make a refactoring pass. Where only names or formats of a run's files changed, change `outputs.py` instead, and the
files stay as they are. The machine that writes them decides where their numbers hold: see `tests/test_golden.py`.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.golden.files import machine, write
from tests.golden.outputs import after_weights, outputs
from tests.golden.studies import STUDIES, run_study


def main(names: list[str]) -> None:
    """Run the studies named, or all, on one organism."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        for name in names or STUDIES:
            began = time.monotonic()
            run_study(name, Path(folder) / name, cache)
            found = outputs(Path(folder) / name)
            path = write(name, {"machine": machine(), "after_weights": after_weights(cache), "outputs": found})
            logging.info("%s: %.0f kB, %.0f s", path, path.stat().st_size / 1e3, time.monotonic() - began)


if __name__ == "__main__":
    main(sys.argv[1:])
