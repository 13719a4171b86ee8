"""Configure hypothesis: no deadline, because speed is not what these tests check, and no files in the project's folder."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")
settings.register_profile("tlc", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tlc")
