# SPDX-License-Identifier: Apache-2.0
"""Tuning with MetaSchedule, at the open lists that a network's gates produce on real images."""

import inspect
import os

# To find the caller of each of hundreds of intrinsics, TVM has `inspect` look for the module of
# every frame on the stack. Frames of these files have none, and each costs a walk through all
# modules: half a minute to two in all.
for _file in ("importlib._bootstrap", "importlib._bootstrap_external", "runpy"):
    inspect.modulesbyfile[os.path.abspath(f"<frozen {_file}>")] = _file
for _file in ("<string>", "<ast>"):
    inspect.modulesbyfile[os.path.abspath(_file)] = "builtins"
