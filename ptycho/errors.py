"""Errors a user can cause; every message names the place, the value, the rule and one action.

Form: ``<where>: <what is wrong> (got <value>, expected <rule>). <one action>.``
"""

from __future__ import annotations


class PtychoError(ValueError):
    """Base of every error that the user can mend; commands turn it into one line and exit status 2."""


class ConfigError(PtychoError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(PtychoError):
    """A data file or array breaks ``specs/data_contracts.md``."""


class BundleError(PtychoError):
    """A saved model cannot be read, or does not fit the data it is asked to reconstruct."""


class MissingPackageError(RuntimeError):
    """An optional package is needed; the message names the install command."""
