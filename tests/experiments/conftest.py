"""Scripts of experiments/ are imported from the repository's root."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "experiments").is_dir():  # a source distribution carries the package and its tests only
    collect_ignore_glob = ["test_*"]
elif str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
