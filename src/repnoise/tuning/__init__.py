"""Settings of a defence that hold best, found with as many tries as every other defence gets."""

from repnoise.tuning.command import TuneConfig, tune

__all__ = ["TuneConfig", "tune"]
