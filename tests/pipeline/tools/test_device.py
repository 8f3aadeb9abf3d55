"""What a bit-identical run depends on."""

import os
import subprocess
import sys

import pytest

# As large as the statistics of 200 films: below, BLAS takes one thread whatever it may.
STAGE = """
import hashlib
import numpy as np
from threadpoolctl import threadpool_info
from openmed.fitted.feature_statistics import fit_statistics
from pipeline.settings.params import load_params
from pipeline.tools.device import use_device
params = load_params()
params = params.model_copy(update={"run": params.run.model_copy(update={"threads": 2, "device": "cpu"})})
use_device(params)
rng = np.random.default_rng(0)
features = [rng.standard_normal((220, width)).astype(np.float32) for width in (576, 2304)]
statistics = fit_statistics(features, rng.integers(0, 2, 220)).to_bytes()
print(hashlib.sha256(statistics).hexdigest(), {library["num_threads"] for library in threadpool_info()})
"""


@pytest.mark.slow
def test_numbers_of_a_stage_depend_on_its_settings_and_on_no_threads_of_the_environment():
    outputs = [
        subprocess.run(
            [sys.executable, "-c", STAGE],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split(maxsplit=1)
        for threads in ("1", "2")
    ]
    assert len({digest for digest, _ in outputs}) == 1
    assert {threads.strip() for _, threads in outputs} == {"{2}"}
