"""
Stubs of the Open Inference Protocol v2 (`inference.GRPCInferenceService`), as far as Twofold answers it.

protobuf's own pool takes each full name once in a process. These messages live in a pool of their own, so that whoever
imports tritonclient, before or after, sees no clash.
"""

from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["POOL"]

POOL = DescriptorPool()
"""Holds the descriptors of this package, and nothing else."""
