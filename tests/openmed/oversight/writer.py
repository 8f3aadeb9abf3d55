"""Writes into a journal, line after line, until it has written so many or is killed."""

import sys
from pathlib import Path

from openmed.oversight.journal import Journal

if __name__ == "__main__":
    folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for number in range(count):
        Journal(folder, wait_s=60).append([{"event": "answered", "film": name, "number": number}])
        print(number, flush=True)
