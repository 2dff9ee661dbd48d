"""Settings of all tests: no progress bars, and the same hypothesis examples on every run."""

import os

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported: it reads this once

from hypothesis import settings

settings.register_profile("nda", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("nda")
