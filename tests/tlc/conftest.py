"""How hypothesis runs here: no deadline on a busy machine, no file left in the project."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")
settings.register_profile("tlc", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tlc")
