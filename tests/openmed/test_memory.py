import subprocess
import sys

import pytest

# In a process of its own, whose memory nobody else uses.
GROWTH = """
import resource, pyarrow as pa
from openmed.memory import give_back

def held():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 2**20

pieces = [(pa.array(["x" * 200] * 5000), bytes(1000)) for _ in range(60)]
full = held()
del pieces
give_back()
print(full - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process what it holds in /proc")
def test_what_is_free_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", GROWTH], check=True, capture_output=True, text=True)
    assert float(done.stdout) > 50  # of 60 arrays of 1 MB
