"""Every Python process with this folder on its path has the toy proof system."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))

from tests.support.toy_system import register

register()
