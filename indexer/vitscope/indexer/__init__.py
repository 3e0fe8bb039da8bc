"""Runs pictures through a model once and writes the index; the only room with torch and timm."""

import os

# Threads of OpenMP that wait for work by spinning take the cores from those that decode, reduce and
# write: the reduction took twice as long. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
