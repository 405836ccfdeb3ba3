# SPDX-License-Identifier: Apache-2.0
"""Every error that `tvm_dynprune` raises on purpose.

::

    DynpruneError
    ├── UserError               the user can mend it: one line, exit status 2
    │   ├── CheckpointError     no checkpoint, another network's, NaN weights
    │   ├── DataError           a data directory or an image that cannot be used
    │   ├── ModelError          a model file that cannot be read or compiled
    │   │   ├── GroupSizeError      the group size does not divide the channels
    │   │   └── UnusableGateError   a gate that cannot be used, under --strict
    │   ├── SocError            unknown or malformed SoC profile
    │   ├── ArtifactError       damaged, of another version, or built for another CPU
    │   ├── DeviceError         a device that is not reached, is lost, or cannot run the network
    │   │   └── DeviceBusyError     somebody else has it
    │   ├── LogError            a tuning log that is none, is damaged, or is for another target
    │   ├── TuningError         all trials of a kernel failed
    │   ├── OutputExistsError   would overwrite; asks for --force
    │   └── ToolError           a program or optional package that is missing
    └── NotLoweredError         a gated convolution stayed dense unasked: our own fault
"""


class DynpruneError(Exception):
    """Base of all errors raised on purpose."""


class UserError(DynpruneError):
    """Something the user can mend; its text is one line: what, where, the limit, the next step."""


class CheckpointError(UserError):
    """A checkpoint that is none, is damaged, or belongs to another network."""


class DataError(UserError):
    """A data directory or an image that cannot be used."""


class ModelError(UserError):
    """A model file that cannot be read or compiled."""


class GroupSizeError(ModelError):
    """The group size does not divide a layer's channels."""


class UnusableGateError(ModelError):
    """A multiplication that looks like a gate cannot be used (raised under ``strict``)."""


class SocError(UserError):
    """An unknown or malformed SoC profile."""


class ArtifactError(UserError):
    """An artifact that is damaged, of another version, or built for another CPU."""


class DeviceError(UserError):
    """A device that is not reached, is lost, or cannot run the network."""


class DeviceBusyError(DeviceError):
    """A device that somebody else has."""


class LogError(UserError):
    """A tuning log that is none, is damaged, or is for another network, target or TVM."""


class TuningError(UserError):
    """All trials of a kernel failed."""


class OutputExistsError(UserError):
    """The output exists and overwriting was not asked for."""


class ToolError(UserError):
    """A program or an optional package that is missing."""


class NotLoweredError(DynpruneError):
    """A gated convolution stayed dense without having been chosen so."""
