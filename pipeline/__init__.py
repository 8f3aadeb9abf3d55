"""The application: one module a stage, and what surrounds them."""

import os

# OpenMP's threads spin while they wait. With other processes on the same cores, as under Airflow,
# that made a training three to five times slower. It is read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
