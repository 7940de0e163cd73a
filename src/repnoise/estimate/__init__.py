"""What a run will take, from configs alone: memory, operations, time and disk; no weights are read."""

from repnoise.estimate.devices import DEVICES, Device, find_device
from repnoise.estimate.estimates import Estimate, Rows, estimate, model_config

__all__ = ["DEVICES", "Device", "Estimate", "Rows", "estimate", "find_device", "model_config"]
